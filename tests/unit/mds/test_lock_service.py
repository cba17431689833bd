"""Locks between clients and leaders that change: the real client and the real service, called directly."""

import errno

import pytest
import trio
import trio.testing

from shoalfs.mds import messages as m
from shoalfs.mds.lock_client import LockClient
from shoalfs.mds.lock_service import LeaderLocks, LockService
from shoalfs.transport.errors import BadMessage, PosixError, SessionGone
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import LOCK_PARK_MS, LOCK_WAITS_PER_SESSION_MAX, SESSION_TTL_MS

F = InodeId(7)


class Answer:
    def __init__(self, body):
        self.body = body


class Group:
    """The metadata group: one leader at a time, begun anew by :meth:`fail_over`."""

    def __init__(self):
        self.term = 0
        self.sessions = []
        self.now_ms = 0
        self.lose_answers = False
        self.fail_over()

    def fail_over(self):
        self.term += 1
        self.locks = LeaderLocks()
        self.locks.lead(self.term, self.sessions, self.now_ms + SESSION_TTL_MS)
        self.service = LockService(
            self.locks, trio.lowlevel.checkpoint, self.sessions.__contains__, lambda: self.now_ms
        )

    def end(self, session):
        self.sessions.remove(session)
        self.locks.ended(session)

    def client(self):
        session = len(self.sessions) + 1
        self.sessions.append(session)
        self.locks.opened(session)
        return Client(self, session)


class Client:
    """What an MdsClient is for its locks."""

    def __init__(self, group, session):
        self.group = group
        self.session = session
        self.locks = LockClient(self)
        self.lost = []
        self.locks.on_lost = self.lost.extend

    async def read(self, method, request):
        service = self.group.service
        handler = {
            m.SET_LOCK: service._set,
            m.GET_LOCK: service._test,
            m.CANCEL_LOCK: service._cancel,
            m.TELL_LOCKS: service._tell,
        }[method]
        answer = Answer(await handler(None, request, b""))
        if self.group.lose_answers:
            await trio.sleep_forever()
        return answer


def ex(owner=1, start=0, end=m.LOCK_END, *, flock=False, ino=F):
    return m.Lock(ino, flock, owner, start, end, m.LockKind.WRITE, 4)


def sh(*args, **options):
    return _kind(ex(*args, **options), m.LockKind.READ)


def un(*args, **options):
    return _kind(ex(*args, **options), m.LockKind.UNLOCK)


def _kind(lock, kind):
    return m.Lock(lock.ino, lock.flock, lock.owner, lock.start_bytes, lock.end_bytes, kind, lock.pid)


@pytest.fixture
def group():
    return Group()


async def settled():
    await trio.testing.wait_all_tasks_blocked()


async def test_a_lock_keeps_others_out(group):
    one, two = group.client(), group.client()
    assert await one.locks.set(ex()) is None
    assert (await two.locks.set(sh())).kind == m.LockKind.WRITE
    assert (await two.locks.test(ex())).pid == 0
    assert (await one.locks.test(ex(owner=2))).pid == 4
    await one.locks.set(un())
    assert await two.locks.set(ex()) is None
    assert one.locks.holds(F, 1, flock=False) is False
    assert two.locks.holds(F, 1, flock=False) is True


async def test_who_waits_is_answered_at_the_unlock_without_asking_again(group, autojump_clock):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.locks.wait, ex())
        await trio.sleep(3 * LOCK_PARK_MS / 1000)
        assert not two.locks.holds(F, 1, flock=False)
        began = trio.current_time()
        await one.locks.set(un())
    assert trio.current_time() == began


async def test_an_interrupted_wait_leaves_nothing(group, autojump_clock):
    one, two, three = group.client(), group.client(), group.client()
    await one.locks.set(ex())
    with trio.move_on_after(1) as scope:
        await two.locks.wait(ex())
    assert scope.cancelled_caught
    await one.locks.set(un())
    assert await three.locks.set(ex()) is None


async def test_an_interrupt_that_comes_too_late_is_none(group):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def both():
                await settled()
                group.locks.set(1, un())  # granted, and the answer is on its way
                scope.cancel()

            nursery.start_soon(both)
            await two.locks.wait(ex())
            taken = two.locks.holds(F, 1, flock=False)
    assert taken


async def test_a_new_leader_gives_nothing_out_until_it_knows_all(group, autojump_clock):
    one, two, three = group.client(), group.client(), group.client()
    await one.locks.set(ex(end=9))
    await two.locks.set(ex(start=10, flock=False))
    group.fail_over()
    async with trio.open_nursery() as nursery:
        conflicts = []

        async def ask():
            conflicts.append(await three.locks.set(sh(end=0)))

        nursery.start_soon(ask)
        await trio.sleep(1)
        assert conflicts == []
        await one.locks.leader_is(group.term)
        await two.locks.leader_is(group.term)
    assert conflicts[0].end_bytes == 9
    await one.locks.set(un())
    assert await three.locks.set(sh(end=0)) is None


async def test_a_session_that_never_comes_back_holds_up_for_its_ttl_only(group, autojump_clock):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    group.fail_over()
    group.now_ms += SESSION_TTL_MS
    assert await two.locks.set(ex()) is None
    # It comes back all the same, too late: its lock is lost, and it is told.
    await one.locks.leader_is(group.term)
    assert one.lost == [F]
    assert not one.locks.holds(F, 1, flock=False)


async def test_an_ended_session_frees_and_wakes(group):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.locks.wait, ex())
        await settled()
        group.end(one.session)
    with pytest.raises(SessionGone):
        await one.locks.set(ex())
    one.locks.session_lost()
    assert one.lost == [F]


async def test_who_waits_goes_over_to_the_new_leader(group, autojump_clock):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(two.locks.wait, ex())
        await settled()
        group.fail_over()
        began = trio.current_time()
        await one.locks.leader_is(group.term)
        await two.locks.leader_is(group.term)
        await settled()
        await one.locks.set(un())
    assert trio.current_time() - began < 1
    assert two.locks.holds(F, 1, flock=False)


async def test_a_grant_that_was_not_heard_of_is_not_held_after_a_change_of_leaders(group, autojump_clock):
    one, two = group.client(), group.client()
    await one.locks.set(ex(end=0))  # both have spoken with the leader
    await two.locks.set(ex(owner=9, start=5, end=5))
    group.lose_answers = True
    with trio.move_on_after(1):
        await one.locks.set(ex(start=8, end=8))
    group.lose_answers = False
    group.fail_over()
    await one.locks.leader_is(group.term)
    await two.locks.leader_is(group.term)
    assert await two.locks.set(ex(start=8, end=8)) is None
    assert (await two.locks.set(ex(end=0))) is not None


async def test_circles_are_refused(group):
    one, two = group.client(), group.client()
    await one.locks.set(ex(end=0))
    await two.locks.set(ex(start=1, end=1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.locks.wait, ex(start=1, end=1))
        await settled()
        with pytest.raises(PosixError) as raised:
            await two.locks.wait(ex(end=0))
        assert raised.value.errno == errno.EDEADLK
        nursery.cancel_scope.cancel()


async def test_a_session_has_so_many_waits_and_no_more(group):
    one, two = group.client(), group.client()
    await one.locks.set(ex())
    async with trio.open_nursery() as nursery:
        for owner in range(LOCK_WAITS_PER_SESSION_MAX):
            nursery.start_soon(two.locks.wait, ex(owner))
        await settled()
        with pytest.raises(PosixError) as raised:
            await two.locks.wait(ex(1000))
        assert raised.value.errno == errno.ENOLCK
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wrong", [ex(start=-1), ex(start=5, end=4), ex(end=m.LOCK_END + 1), _kind(ex(), 3)])
async def test_what_is_no_lock_is_refused(group, wrong):
    with pytest.raises(BadMessage):
        await group.client().locks.test(wrong)


async def test_a_flock_is_given_back_before_another_kind_is_asked_for(group):
    one, two = group.client(), group.client()
    await one.locks.set(sh(flock=True))
    await two.locks.set(sh(flock=True))
    assert await one.locks.set(ex(flock=True)) is not None
    assert not one.locks.holds(F, 1, flock=True)
    assert await two.locks.set(ex(flock=True)) is None
