"""Sessions, chunk ranges and targets."""

import errno

import pytest

from harness.metadata import ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import BadMessage, NotAllowed, Overloaded, PosixError, SessionGone
from shoalfs.transport.ids import ROOT_INODE, SessionId, TargetId, chunk_id
from shoalfs.transport.limits import CHUNK_RANGE_MAX, PGS_PER_TARGET

E = errno


@pytest.fixture
def md():
    md = Metadata()
    yield md
    assert md.findings() == []


def sessions(md):
    return md.read(lambda txn, _: reads.sessions(txn), None)


def open_(md, nonce):
    return md.do(m.OpenSession(nonce, "client"), session=0)


# --- sessions -----------------------------------------------------------------------------------------------


def test_the_same_nonce_is_the_same_session(md):
    first = open_(md, b"n" * 16)
    again = open_(md, b"n" * 16)
    other = open_(md, b"o" * 16)
    assert first.session == again.session != other.session
    assert first.ttl_ms == 20_000
    assert first.map == md.map()
    assert sessions(md) == [(md.session, "tests"), (first.session, "client"), (other.session, "client")]


def test_session_requests_are_checked(md):
    with pytest.raises(BadMessage):
        open_(md, b"short")
    with pytest.raises(BadMessage):
        md.do(m.OpenSession(b"n" * 16, "c" * 513), session=0)


def test_sessions_have_a_limit(md, monkeypatch):
    monkeypatch.setattr("shoalfs.mds.ops.open_session.SESSIONS_MAX", 2)
    opened = open_(md, b"a" * 16)
    with pytest.raises(Overloaded):
        open_(md, b"b" * 16)
    md.do(m.EndSession(opened.session), session=0)
    open_(md, b"b" * 16)


def test_nothing_of_an_ended_session_is_left(md):
    session = open_(md, b"n" * 16).session
    md.do(m.Mkdir(ROOT, ROOT_INODE, b"d", 0o755), session=session)
    chunk = chunk_id(1, md.do(m.ReserveChunks(10), session=session).first_sequence)
    md.do(m.EndSession(session, expired=True), session=0)
    prefixes = {bytes([key[0]]) for key in md.store.rows}
    assert prefixes.isdisjoint({b"N", b"n"})
    assert sessions(md) == [(md.session, "tests")]
    with pytest.raises(SessionGone):
        md.do(m.Mkdir(ROOT, ROOT_INODE, b"e", 0o755), session=session)
    assert md.read(reads.strays, [chunk]) == [chunk]
    md.do(m.EndSession(session), session=0)  # again: nothing to do
    assert open_(md, b"n" * 16).session not in (session, md.session)  # never used again


def test_a_session_ends_itself_and_no_other(md):
    session = open_(md, b"n" * 16).session
    with pytest.raises(NotAllowed):
        md.do(m.EndSession(md.session), session=session)
    md.do(m.EndSession(session), session=session)
    assert sessions(md) == [(md.session, "tests")]
    for number in (0, -1, 1 << 63):
        md.do(m.EndSession(SessionId(number)), session=0)


def test_chunk_ranges_follow_each_other(md):
    assert md.do(m.ReserveChunks(10)) == m.ChunksReserved(1, 10)
    assert md.do(m.ReserveChunks(CHUNK_RANGE_MAX)) == m.ChunksReserved(11, CHUNK_RANGE_MAX)
    assert md.do(m.ReserveChunks(1)).first_sequence == 11 + CHUNK_RANGE_MAX
    for count in (0, -1, CHUNK_RANGE_MAX + 1):
        with pytest.raises(BadMessage):
            md.do(m.ReserveChunks(count))


def test_chunk_numbers_run_out(md, monkeypatch):
    monkeypatch.setattr("shoalfs.mds.ops.reserve_chunks.CHUNK_SEQUENCE_MAX", 10)
    md.do(m.ReserveChunks(9))
    with pytest.raises(PosixError) as caught:
        md.do(m.ReserveChunks(2))
    assert caught.value.errno == E.ENOSPC
    md.do(m.ReserveChunks(1))


# --- targets ------------------------------------------------------------------------------------------------


def register(md, number, node="n", address="unix:/a"):
    return md.do(m.RegisterTarget(bytes([number]) * 16, f"{node}{number}", address, 100), session=0)


def state(md, target, new):
    return md.do(m.SetTargetState(TargetId(target), new), session=0)


def target(md, number):
    return next(t for t in md.map().targets if t.id == number)


def test_registering(md):
    assert md.map().epoch == 1
    first = register(md, 1)
    assert (first.target.id, first.target.epoch, first.target.state, first.map_epoch) == (
        1,
        1,
        TargetState.UP,
        2,
    )
    assert md.map().groups == ()  # the pool wants two
    second = register(md, 2)
    assert second.map_epoch == md.map().epoch == 3
    groups = md.map().groups
    assert len(groups) == 2 * PGS_PER_TARGET
    again = register(md, 1, address="tcp:host:1")
    assert (again.target.id, again.target.epoch, again.target.address) == (1, 2, "tcp:host:1")
    assert md.map().groups == groups
    assert md.map().epoch == 4


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TargetState.UP, TargetState.UP),
        (TargetState.DOWN, TargetState.SYNCING),
        (TargetState.SYNCING, TargetState.SYNCING),
        (TargetState.DRAINING, TargetState.DRAINING),
        (TargetState.OUT, TargetState.OUT),
    ],
)
def test_registering_again(md, before, after):
    bring_to(md, before)
    epoch = target(md, 1).epoch
    assert register(md, 1).target.state is after
    assert target(md, 1).epoch == epoch + 1


def bring_to(md, wanted):
    """Register target 1 and bring it into this state."""
    register(md, 1)
    if wanted is TargetState.SYNCING:
        state(md, 1, TargetState.DOWN)
        register(md, 1)
    state(md, 1, wanted)


ALLOWED = {
    ("UP", "DOWN"),
    ("UP", "DRAINING"),
    ("UP", "OUT"),
    ("DOWN", "DRAINING"),
    ("DOWN", "OUT"),
    ("DRAINING", "UP"),
    ("DRAINING", "DOWN"),
    ("DRAINING", "OUT"),
    ("OUT", "DOWN"),
    ("DRAINING", "SYNCING"),
    ("OUT", "SYNCING"),
    ("SYNCING", "UP"),
    ("SYNCING", "DOWN"),
    ("SYNCING", "DRAINING"),
    ("SYNCING", "OUT"),
}


@pytest.mark.parametrize("before", TargetState)
@pytest.mark.parametrize("after", TargetState)
def test_states(md, before, after):
    bring_to(md, before)
    was, map_epoch = target(md, 1), md.map().epoch
    if before is after:
        assert state(md, 1, after).map_epoch == map_epoch
        assert target(md, 1) == was
    elif (before.name, after.name) in ALLOWED:
        assert state(md, 1, after).map_epoch == md.map().epoch == map_epoch + 1
        assert target(md, 1).state is after
        assert target(md, 1).epoch == was.epoch + (after is TargetState.DOWN)
        assert target(md, 1).since_ns == md.now_ns
    else:
        with pytest.raises(PosixError) as caught:
            state(md, 1, after)
        assert caught.value.errno == E.EINVAL
        assert target(md, 1) == was


def test_unknown_targets(md):
    for number in (1, 0, -1, 1 << 40):
        with pytest.raises(PosixError) as caught:
            state(md, number, TargetState.DOWN)
        assert caught.value.errno == E.ENOENT


def test_registrations_are_checked(md):
    for request in (
        m.RegisterTarget(b"short", "n", "a", 1),
        m.RegisterTarget(b"u" * 16, "n", "a", -1),
        m.RegisterTarget(b"u" * 16, "n" * 256, "a", 1),
    ):
        with pytest.raises(BadMessage):
            md.do(request, session=0)


def test_statfs(md):
    register(md, 1)
    register(md, 2)
    register(md, 3)
    usage = {TargetId(1): (1000, 400), TargetId(2): (1000, 1200)}
    stat = md.read(reads.statfs, usage)
    assert (stat.capacity_bytes, stat.free_bytes) == ((1000 + 1000 + 100) // 2, 300)
    assert stat.inodes == 1
    state(md, 1, TargetState.OUT)
    assert md.read(reads.statfs, usage).free_bytes == 0
