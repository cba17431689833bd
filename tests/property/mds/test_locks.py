"""The lock table against a model that knows, for each byte, who has locked it how."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoalfs.mds.locks import LockTable, Refusal, restored
from shoalfs.mds.messages import LOCK_END, Lock, LockKind
from shoalfs.transport.ids import InodeId, SessionId

BYTES = 12
OWNERS = [(SessionId(s), o) for s in (1, 2, 3) for o in (10, 11)]
INODES = [InodeId(7), InodeId(8)]

owners = st.sampled_from(OWNERS)
ranges = st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1)).map(lambda pair: (min(pair), max(pair)))


class LockMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LockTable()
        self.bytes: dict[tuple[int, bool, int], dict[tuple[int, int], LockKind]] = {}
        self.waits: list[tuple[object, tuple[int, int], Lock]] = []
        self.granted: list[object] = []
        self.number = 0

    # --- the model ---------------------------------------------------------------------------------------------------

    def at(self, lock: Lock):
        return [
            self.bytes.setdefault((lock.ino, lock.flock, byte), {})
            for byte in range(lock.start_bytes, lock.end_bytes + 1)
        ]

    def is_free(self, owner, lock: Lock) -> bool:
        return all(
            other == owner or LockKind.WRITE not in (kind, lock.kind)
            for holders in self.at(lock)
            for other, kind in holders.items()
        )

    def put(self, owner, lock: Lock) -> None:
        for holders in self.at(lock):
            holders.pop(owner, None)
            if lock.kind != LockKind.UNLOCK:
                holders[owner] = LockKind(lock.kind)

    def convert(self, owner, lock: Lock) -> None:
        if lock.flock and any(holders.get(owner, lock.kind) != lock.kind for holders in self.at(lock)):
            for holders in self.at(lock):
                holders.pop(owner, None)

    def wake(self) -> None:
        """Those who wait get what is free, in the order of their coming, again and again."""
        while True:
            entry = next((entry for entry in self.waits if self.is_free(entry[1], entry[2])), None)
            if entry is None:
                return
            self.waits.remove(entry)
            self.put(entry[1], entry[2])
            self.granted.append(entry[0])

    def take_granted(self) -> None:
        assert self.table.granted() == self.granted
        self.granted.clear()

    def lock(self, owner, ino, flock, where, kind) -> Lock:
        start, end = (0, BYTES - 1) if flock else where
        return Lock(ino, flock, owner[1], start, end, kind, 99)

    # --- what is done ------------------------------------------------------------------------------------------------

    @rule(
        owner=owners, ino=st.sampled_from(INODES), flock=st.booleans(), where=ranges, kind=st.sampled_from(LockKind),
        wait=st.booleans(),
    )  # fmt: skip
    def set(self, owner, ino, flock, where, kind, wait):
        lock = self.lock(owner, ino, flock, where, kind)
        self.convert(owner, lock)
        self.wake()
        free = self.is_free(owner, lock) or kind == LockKind.UNLOCK
        if free:
            self.put(owner, lock)
            self.wake()
        if wait and kind != LockKind.UNLOCK:
            self.number += 1
            answer = self.table.wait(owner[0], lock, self.number)
            assert (answer is None) == free
            if answer is Refusal.DEADLOCK:
                assert not flock
            elif answer is not None:
                self.waits.append((answer, owner, lock))
        else:
            conflict = self.table.set(owner[0], lock)
            assert (conflict is None) == free
            if conflict is not None:
                assert conflict.start_bytes <= lock.end_bytes
                assert conflict.end_bytes >= lock.start_bytes
        self.take_granted()

    @rule(data=st.data())
    def cancel(self, data):
        if self.waits:
            entry = data.draw(st.sampled_from(self.waits))
            self.table.cancel(entry[0])
            self.waits.remove(entry)

    @rule(session=st.sampled_from([1, 2, 3]))
    def end(self, session):
        self.table.end(session)
        self.waits = [entry for entry in self.waits if entry[1][0] != session]
        for holders in self.bytes.values():
            for owner in [owner for owner in holders if owner[0] == session]:
                del holders[owner]
        self.wake()
        assert sorted(map(repr, self.table.granted())) == sorted(map(repr, self.granted))
        self.granted.clear()

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def the_same_bytes_are_locked(self):
        found: dict[tuple[int, bool, int], dict[tuple[int, int], LockKind]] = {}
        for session in (1, 2, 3):
            locks = list(self.table.locks_of(session))
            assert len(locks) == self.table.count(session)
            for lock in locks:
                for byte in range(lock.start_bytes, lock.end_bytes + 1):
                    holders = found.setdefault((lock.ino, lock.flock, byte), {})
                    assert (session, lock.owner) not in holders
                    holders[session, lock.owner] = LockKind(lock.kind)
        assert found == {place: holders for place, holders in self.bytes.items() if holders}

    @invariant()
    def nobody_waits_for_what_is_free(self):
        for _, owner, lock in self.waits:
            assert not self.is_free(owner, lock)

    @invariant()
    def neighbours_of_one_kind_are_joined(self):
        for session in (1, 2, 3):
            locks = sorted(self.table.locks_of(session), key=lambda k: (k.ino, k.flock, k.owner, k.start_bytes))
            for one, two in itertools.pairwise(locks):
                same = (one.ino, one.flock, one.owner, one.kind) == (two.ino, two.flock, two.owner, two.kind)
                assert not same or one.end_bytes + 1 < two.start_bytes

    @invariant()
    def a_new_table_can_be_told_everything(self):
        fresh = LockTable()
        for session in (1, 2, 3):
            assert restored(fresh, session, self.table.locks_of(session)) == []
        assert all(sorted(map(repr, fresh.locks_of(s))) == sorted(map(repr, self.table.locks_of(s))) for s in (1, 2, 3))


LockMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLocks = LockMachine.TestCase


def test_a_lock_to_the_end_of_the_file_is_one():
    table = LockTable()
    table.set(1, Lock(InodeId(7), False, 10, 0, 99, LockKind.WRITE, 1))
    table.set(1, Lock(InodeId(7), False, 10, 100, LOCK_END, LockKind.WRITE, 1))
    assert [(lock.start_bytes, lock.end_bytes) for lock in table.locks_of(1)] == [(0, LOCK_END)]


def circle(table: LockTable, count: int) -> object:
    """Owner n has byte n and waits for the next one's; the last one's answer."""
    for n in range(count):
        table.set(n + 1, Lock(InodeId(7), False, 0, n, n, LockKind.WRITE, 1))
    answers = [
        table.wait(n + 1, Lock(InodeId(7), False, 0, (n + 1) % count, (n + 1) % count, LockKind.READ, 1), 1)
        for n in range(count)
    ]
    assert Refusal.DEADLOCK not in answers[:-1]
    return answers[-1]


def test_circles_of_any_length_are_found():
    for count in (2, 3, 9):
        table = LockTable()
        assert circle(table, count) is Refusal.DEADLOCK
        # The others go on when the one that was refused gives back what it has.
        table.set(count, Lock(InodeId(7), False, 0, 0, LOCK_END, LockKind.UNLOCK, 1))
        assert [wait.owner for wait in table.granted()] == [(count - 1, 0)]


def test_waiting_for_a_flock_is_never_a_deadlock():
    table = LockTable()
    for n in (0, 1):
        table.set(n + 1, Lock(InodeId(n), True, 0, 0, LOCK_END, LockKind.WRITE, 1))
    for n in (0, 1):
        assert table.wait(n + 1, Lock(InodeId(1 - n), True, 0, 0, LOCK_END, LockKind.WRITE, 1), 1) not in (
            None,
            Refusal.DEADLOCK,
        )


def test_what_a_session_tells_too_late_is_lost():
    table = LockTable()
    table.set(1, Lock(InodeId(7), False, 0, 5, 5, LockKind.WRITE, 1))
    told = [
        Lock(InodeId(7), False, 0, 0, 0, LockKind.WRITE, 1),
        Lock(InodeId(7), False, 0, 5, 6, LockKind.READ, 1),
        Lock(InodeId(8), False, 0, 5, 6, LockKind.READ, 1),
    ]
    assert restored(table, 2, told) == [7]
    assert [lock.ino for lock in table.locks_of(2)] == [8]
