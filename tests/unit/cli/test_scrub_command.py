"""What `shoal scrub status` makes of a cluster's status."""

import msgspec

from shoalfs.fs.cli.scrub import describe
from shoalfs.mds import messages as m

RAFT = m.RaftStatus(1, 1, "tcp:m:1", 1, 1, 1, ((1, "tcp:m:1"),))


def test_a_target_is_idle_only_once_it_heeded_the_last_request():
    reports = (
        m.ScrubReport(0, 900, 10, 1000, 1, requested_ns=5),
        m.ScrubReport(800, 0, 3, 300, 0, requested_ns=5),
        m.ScrubReport(0, 900, 10, 1000, 0, requested_ns=4),
    )
    targets = tuple(
        m.Target(number, bytes(16), f"n{number}", "tcp:a:1", 1, m.TargetState.UP, 1000) for number in (1, 2, 3)
    )
    found = m.MdsStatus(
        RAFT,
        m.ClusterMap(b"c" * 16, 1, (), targets, ()),
        (),
        (),
        1,
        0,
        0,
        0,
        0,
        {},
        scrubs=tuple(m.ScrubStatus(number, report) for number, report in enumerate(reports, 1)),
        upkeep=m.Upkeep(False, 5),
    )
    rows = describe(found)
    assert [(row["node"], row["state"], row["damaged"]) for row in rows] == [
        ("n1", "idle", 1),
        ("n2", "running", 0),
        ("n3", "asked for", 0),
    ]
    msgspec.json.encode(rows)
