"""Over what the members of a cluster talk: who is asked, and what is shown."""

import json

from shoalfs.fs.cli import links
from shoalfs.fs.cli.links import Server, as_rows, left_out, servers, summary
from shoalfs.mds.messages import ClusterMap, MdsStatus, Pool, RaftStatus, Target, TargetState
from shoalfs.transport.links import Links, LinkStatus

BULK = {"messages_sent": 3, "messages_received": 4, "bulk_sent_bytes": 0, "bulk_received_bytes": 3 << 20}
VERBS = LinkStatus("client", "b:2", "verbs", "rxe0", "", BULK)
OVER_TCP = LinkStatus("client", "a:1", "tls", "", "the peer declined: no RDMA device here", {})
OWN = LinkStatus("admin", "shoal:77", "tls", "", "", {})
LOCAL = LinkStatus("chunkserver", "n1", "unix", "", "", {})


def status(*targets):
    return MdsStatus(
        raft=RaftStatus(1, 1, "tcp:m1:1", 3, 10, 10, ((1, "tcp:m1:1"), (2, "tcp:m2:1"))),
        map=ClusterMap(b"c" * 16, 7, (Pool(1, "hot", 2, 1),), targets, ()),
        usage=(),
        sessions=(),
        inodes=5,
        inline_files=3,
        inline_bytes=30,
        orphans=1,
        garbage_chunks=2,
        counters={},
    )


def target(number, node, address, state):
    return Target(number, b"u" * 16, node, address, 1, state, 1000)


def test_whoever_is_up_is_asked_once():
    found = status(
        target(1, "n1", "tcp:n1:1", TargetState.UP),
        target(2, "n1", "tcp:n1:1", TargetState.DRAINING),
        target(3, "n2", "tcp:n2:1", TargetState.DOWN),
    )
    assert servers(found, {1: True, 2: False}) == [Server("mds 1", "tcp:m1:1"), Server("n1", "tcp:n1:1")]


def test_rows_have_stable_keys_and_leave_out_the_asker():
    told = {Server("mds 1", "tcp:m1:1"): Links((VERBS, OWN, OVER_TCP), 7), Server("n1", "unix:/s"): Links((LOCAL,))}
    rows = as_rows(told, "shoal:77")
    assert [list(row) for row in rows] == [
        ["server", "server_address", "role", "peer", "carrier", "device", "reason", "counters"]
    ] * 3
    assert [(row["peer"], row["carrier"], row["reason"]) for row in rows] == [
        ("a:1", "tls", "the peer declined: no RDMA device here"),
        ("b:2", "verbs", ""),
        ("n1", "unix", ""),
    ]
    assert left_out(told) == 7
    assert summary(rows, 7) == "1 over tls, 1 over unix, 1 over verbs, 7 more"
    assert summary([], 0) == "none"
    json.dumps(rows)


def test_the_screen_shows_what_goes_between_machines_and_why(capsys):
    links.show(as_rows({Server("mds 1", "tcp:m1:1"): Links((VERBS, OVER_TCP, LOCAL))}, "shoal:77"))
    heading, first, second = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert heading == ["server", "peer", "over", "bulk", "why", "not", "verbs"]
    assert first == ["mds", "1", "client", "a:1", "tls", "the", "peer", "declined:", "no", "RDMA", "device", "here"]
    assert second == ["mds", "1", "client", "b:2", "verbs", "rxe0", "3.0", "MiB", "in,", "0", "B", "out"]


def test_a_long_table_is_cut_and_says_so(capsys):
    links.show(as_rows({Server("mds 1", "tcp:m1:1"): Links((VERBS,) * 100)}, "shoal:77"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 50
    assert lines[-1].strip() == "60 more: shoal status -o json"


def test_nothing_is_shown_where_all_is_on_one_machine(capsys):
    links.show(as_rows({Server("mds 1", "unix:/s"): Links((LOCAL,))}, "shoal:77"))
    assert capsys.readouterr().out == ""
