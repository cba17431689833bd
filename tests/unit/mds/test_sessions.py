"""The leader's memory of sessions: TTL, opens, and the grace period of a new leader."""

from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.ids import InodeId, SessionId

A, B = SessionId(7), SessionId(8)
FILE, OTHER = InodeId(100), InodeId(101)
TTL = 20_000


def table_with(*sessions: SessionId) -> SessionTable:
    table = SessionTable(TTL)
    table.lead([], 0)
    for session in sessions:
        table.opened(session, "host:1", 0)
    return table


def test_a_session_expires_one_ttl_after_its_last_renewal():
    table = table_with(A, B)
    assert table.renew(B, None, 10_000) is False
    assert table.expired(TTL) == []
    assert table.expired(TTL + 1) == [A]
    assert table.expired(10_000 + TTL + 1) == [A, B]


def test_an_inode_is_open_until_every_holder_released_it():
    table = table_with(A, B)
    table.hold(A, FILE)
    table.hold(A, FILE)
    table.hold(B, FILE)
    table.release(A, [FILE, OTHER])
    assert table.may_be_open(FILE, 0)
    table.release(B, [FILE])
    assert not table.may_be_open(FILE, 0)


def test_the_end_of_a_session_closes_what_it_had_open():
    table = table_with(A)
    table.hold(A, FILE)
    table.ended(A)
    assert not table.knows(A)
    assert not table.may_be_open(FILE, 0)
    table.ended(A)
    table.release(A, [FILE])


def test_a_new_leader_treats_everything_as_open_until_all_sessions_have_reported():
    table = SessionTable(TTL)
    table.lead([(A, "a"), (B, "b")], 1_000)
    assert table.may_be_open(FILE, 1_000)
    assert table.renew(A, None, 1_100) is True
    assert table.renew(A, [OTHER], 1_200) is False
    assert table.may_be_open(FILE, 1_200), "B has not reported yet"
    assert table.renew(B, [], 1_300) is False
    assert not table.may_be_open(FILE, 1_300)
    assert table.may_be_open(OTHER, 1_300)


def test_the_grace_period_ends_with_the_ttl_even_if_a_session_never_reports():
    table = SessionTable(TTL)
    table.lead([(A, "a")], 0)
    assert table.may_be_open(FILE, TTL - 1)
    assert not table.may_be_open(FILE, TTL)


def test_a_leader_without_sessions_has_no_grace_period():
    table = SessionTable(TTL)
    table.lead([], 5)
    assert not table.may_be_open(FILE, 5)


def test_leading_anew_forgets_the_opens_of_the_leadership_before():
    table = table_with(A)
    table.hold(A, FILE)
    table.lead([(A, "a")], 0)
    table.renew(A, [], 0)
    assert not table.may_be_open(FILE, 0)


def test_opens_are_bounded(monkeypatch):
    monkeypatch.setattr("shoalfs.mds.sessions.OPENS_PER_SESSION_MAX", 2)
    table = table_with(A)
    assert table.hold(A, InodeId(2))
    assert table.hold(A, InodeId(3))
    assert not table.hold(A, InodeId(4))
    assert table.hold(A, InodeId(3)), "one that is open already counts once"
