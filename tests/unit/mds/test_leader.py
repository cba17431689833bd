"""How a client finds the leader: redirects, members that are gone, that send it in circles, or that hang."""

import pytest
import trio

from shoalfs.mds.group_messages import WHO_LEADS, LeaderIs
from shoalfs.mds.leader import Leader, pause_after
from shoalfs.mds.messages import GET_MAP, GetMap
from shoalfs.transport.errors import DeadlineExceeded, NotLeader, PeerUnreachable
from shoalfs.transport.rpc import Reply


class Members:
    """A network in which each address answers with what the test says."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def heard_at(self, address):
        return -float("inf")

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


class Hosts:
    """Members that answer after a time, or hang; ``drop`` fails what waits, as a closed connection does."""

    def __init__(self, leads: str, slow_s: float = 0.0):
        self.leads = leads
        self.term = 1
        self.slow_s = slow_s  # how long an answer of the leader takes
        self.hung: set[str] = set()
        self.heard: dict[str, float] = {}
        self.asked: list[str] = []
        self.dropped: list[str] = []
        self.broken = {address: trio.Event() for address in "abc"}

    def heard_at(self, address):
        return self.heard.get(address, -float("inf"))

    async def wait_broken(self, address):
        await self.broken[address].wait()

    async def drop(self, address):
        self.dropped.append(address)
        self.broken[address].set()
        self.broken[address] = trio.Event()
        await trio.lowlevel.checkpoint()

    async def call(self, address, method, request, *, timeout_ms):
        self.asked.append(address)
        broken = self.broken[address]
        with trio.move_on_after(timeout_ms / 1000):
            if address in self.hung:
                await broken.wait()
                raise PeerUnreachable(address)
            self.heard[address] = trio.current_time()
            if method is WHO_LEADS:
                return Reply(LeaderIs(self.leads, self.term), memoryview(b""))
            if address != self.leads:
                raise NotLeader(self.leads)
            await trio.sleep(self.slow_s)
            return "the answer"
        raise DeadlineExceeded(address)


async def test_who_waits_at_a_leader_that_hangs_is_answered_soon_after_there_is_another(nursery, autojump_clock):
    hosts = Hosts(leads="a")
    leader = Leader(hosts, ["a", "b", "c"])
    nursery.start_soon(leader.watch)
    hosts.hung.add("a")

    async def elect():
        await trio.sleep(5)
        hosts.leads, hosts.term = "c", 2

    nursery.start_soon(elect)
    waiting = [trio.Event() for _ in range(50)]

    async def ask(done):
        assert await leader.call(GET_MAP, GetMap()) == "the answer"
        done.set()

    for done in waiting:
        nursery.start_soon(ask, done)
    with trio.fail_after(5 + 3.5):
        for done in waiting:
            await done.wait()
    assert hosts.dropped == ["a"]


async def test_an_answer_may_take_longer_than_it_is_looked_for_a_leader(autojump_clock):
    """As a page of fsck's, on a busy machine; but without a leader an operator hears so soon."""
    hosts = Hosts(leads="a", slow_s=20)
    leader = Leader(hosts, ["a"], patience_ms=5_000)
    assert await leader.call(GET_MAP, GetMap(), 60_000) == "the answer"
    with pytest.raises(DeadlineExceeded):
        await leader.call(GET_MAP, GetMap())
    hosts.leads = ""
    began = trio.current_time()
    with pytest.raises(PeerUnreachable):
        await leader.call(GET_MAP, GetMap(), 60_000)
    assert trio.current_time() - began < 7


async def test_the_owner_of_a_session_hears_that_another_one_leads_though_it_asks_for_nothing(nursery, autojump_clock):
    hosts = Hosts(leads="a")
    leader = Leader(hosts, ["a", "b", "c"])
    nursery.start_soon(leader.watch)
    for leads, hung in (("b", set()), ("c", {"b"})):  # deposed, and stopped
        await trio.sleep(10)
        hosts.leads, hosts.hung, hosts.term = leads, hung, hosts.term + 1
        with trio.fail_after(3.5):
            await leader.wait_doubtful()
        assert leader.address == leads


async def test_an_election_that_is_not_over_moves_nobody(nursery, autojump_clock):
    hosts = Hosts(leads="a")
    leader = Leader(hosts, ["a", "b", "c"])
    nursery.start_soon(leader.watch)
    hosts.hung.add("a")
    await trio.sleep(20)
    assert (leader.address, hosts.dropped) == ("a", [])


async def test_a_leader_that_is_slow_but_says_other_things_is_not_left(nursery, autojump_clock):
    """As one that is new, and lets mutations wait for leases that the old one gave."""
    hosts = Hosts(leads="b", slow_s=12)
    leader = Leader(hosts, ["a", "b", "c"])

    async def renew():
        while True:
            await trio.sleep(1)
            hosts.heard["b"] = trio.current_time()

    async def quicken():
        await trio.sleep(15)
        hosts.slow_s = 0

    nursery.start_soon(renew)
    nursery.start_soon(quicken)
    assert await leader.call(GET_MAP, GetMap()) == "the answer"
    assert hosts.asked == ["a", "b", "b", "b"]


async def test_many_that_meet_the_same_dead_member_go_one_further_together(nursery, autojump_clock):
    hosts = Hosts(leads="b")
    hosts.hung.add("a")
    leader = Leader(hosts, ["a", "b", "c"])
    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(leader.call, GET_MAP, GetMap(), 1_000)
        await trio.sleep(1.5)
        assert leader.address == "b"
