"""How a client finds the leader: redirects, members that are gone, members that send it in circles."""

import pytest
import trio

from shoalfs.mds.client import Leader, pause_after
from shoalfs.mds.messages import GET_MAP, GetMap
from shoalfs.transport.errors import NotLeader, PeerUnreachable


class Members:
    """A network in which each address answers with what the test says."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    async def call(self, address, method, request, *, timeout_ms):
        await trio.lowlevel.checkpoint()
        self.asked.append(address)
        answer = self.answers[address]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_hint_is_followed_at_once(autojump_clock):
    members = Members({"a": NotLeader("c"), "b": NotLeader(""), "c": "the answer"})
    assert await Leader(members, ["a", "b"]).call(GET_MAP, GetMap()) == "the answer"
    assert members.asked == ["a", "c"]
    assert trio.current_time() == pytest.approx(0.0, abs=0.01)


async def test_who_is_gone_is_passed_over(autojump_clock):
    members = Members({"a": PeerUnreachable("gone"), "b": "the answer"})
    assert await Leader(members, ["a", "b"]).call(GET_MAP, GetMap()) == "the answer"
    assert members.asked == ["a", "b"]


async def test_members_that_name_each_other_are_not_asked_without_a_pause(autojump_clock):
    members = Members({"a": NotLeader("b"), "b": NotLeader("a")})
    with pytest.raises(PeerUnreachable, match="no leader"):
        await Leader(members, ["a", "b"], patience_ms=5_000).call(GET_MAP, GetMap())
    assert len(members.asked) < 200


async def test_a_leader_that_comes_back_is_found_soon_and_a_long_stall_costs_few_questions(autojump_clock):
    for stalled_s, asked_max in ((1.0, 60), (60.0, 250)):
        began = trio.current_time()
        members = Members({"a": NotLeader(""), "b": PeerUnreachable("gone")})

        async def elect(members=members, stalled_s=stalled_s):
            await trio.sleep(stalled_s)
            members.answers["a"] = "the answer"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(elect)
            assert await Leader(members, ["a", "b"]).call(GET_MAP, GetMap()) == "the answer"
        # Two members to ask, each after a pause.
        assert trio.current_time() - began <= stalled_s + 2 * pause_after(1.3 * stalled_s)
        assert len(members.asked) < asked_max
