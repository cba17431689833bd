"""Commands of operators against a metadata service that only remembers what it was told."""

from types import SimpleNamespace

import pytest
import trio

from shoalfs import __main__ as entry
from shoalfs.fs.cli import gc, output, session, targets
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState

RAFT = m.RaftStatus(1, 1, "tcp:m:1", 1, 1, 1, ((1, "tcp:m:1"),))


@pytest.fixture
def told(monkeypatch):
    """What was asked for. Node "a" has a target that is needed and one that is out, "b" one that is out."""
    asked = []
    places = (("a", TargetState.OUT), ("a", TargetState.UP), ("b", TargetState.OUT))
    made = tuple(m.Target(n, bytes(16), node, "tcp:n:1", 1, state, 1) for n, (node, state) in enumerate(places, 1))
    map_ = m.ClusterMap(b"c" * 16, 1, (), made, (m.PlacementGroup(1, 1, (2,)),))
    status = m.MdsStatus(RAFT, map_, (), (m.SessionInfo(7, "client", 0, 0),), 1, 0, 0, 0, 0, {})

    async def answer(*_):
        return SimpleNamespace(body=status)

    async def ask_status(_):
        return status

    async def mutate(_, op, request):
        asked.append(request)

    operator = SimpleNamespace(leader=SimpleNamespace(call=answer), network=None)
    for module in (gc, session, targets):
        monkeypatch.setattr(module, "locate", lambda *_: SimpleNamespace(mds=()))
        monkeypatch.setattr(module, "call", lambda _, work: trio.run(work, operator))
    for module in (gc, targets):
        monkeypatch.setattr(module, "mutate", mutate)
        monkeypatch.setattr(module, "ask_status", ask_status)
    return asked


def test_a_node_is_removed_with_all_its_targets_or_not_at_all(told, capfd):
    assert entry.main(["node", "remove", "a"]) == 2
    line = (
        "shoal: node a: target 2 still holds 1 placement groups: `shoal node drain a`, and wait until they have moved\n"
    )
    assert capfd.readouterr().err == line
    assert told == []
    assert entry.main(["node", "remove", "b"]) == 0
    assert told == [m.RemoveTarget(3)]


def test_draining_a_node_leaves_out_what_is_out_already(told, capfd):
    assert entry.main(["node", "drain", "a"]) == 0
    assert told == [m.SetTargetState(2, TargetState.DRAINING)]


def test_why_deletion_is_held_is_one_line(told, capfd):
    assert entry.main(["gc", "hold", "--reason", "restored\n  from tape "]) == 0
    assert told == [m.Upkeep(deletions_held=True, held_reason="restored from tape")]


def test_a_session_that_is_not_there_is_not_evicted(told, capfd):
    assert entry.main(["session", "evict", "8"]) == 2
    assert capfd.readouterr().err == "shoal: session 8: there is none: see `shoal session list`\n"


def test_numbers_are_set_right_also_where_some_are_not_known(capfd):
    output.print_table(("a", "b"), [("1.0", "x"), ("-", "y"), ("12.5", "z"), ("?", "-")])
    assert capfd.readouterr().out.splitlines() == ["   a  b", " 1.0  x", "   -  y", "12.5  z", "   ?  -"]
