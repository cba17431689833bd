"""Sessions, chunk ranges and targets."""

import errno

import msgspec
import pytest

from harness.metadata import ROOT, Metadata
from shoalfs.mds import cluster, reads
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState
from shoalfs.transport.errors import (
    BadMessage,
    NotAllowed,
    Overloaded,
    PosixError,
    SessionGone,
    StaleReceipt,
    TargetRemoved,
)
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
    elif (before, after) == (TargetState.DOWN, TargetState.DRAINING):
        state(md, 1, after)
        assert target(md, 1) == msgspec.structs.replace(was, draining=True)
    else:
        with pytest.raises(PosixError) as caught:
            state(md, 1, after)
        assert caught.value.errno == E.EINVAL
        assert target(md, 1) == was


def test_a_draining_that_a_failure_interrupts_goes_on(md):
    register(md, 1)
    state(md, 1, TargetState.DRAINING)
    state(md, 1, TargetState.DOWN)
    assert (target(md, 1).state, target(md, 1).draining) == (TargetState.DOWN, True)
    assert register(md, 1).target.state is TargetState.DRAINING
    assert not target(md, 1).draining
    state(md, 1, TargetState.SYNCING)
    state(md, 1, TargetState.DOWN)
    assert not target(md, 1).draining
    assert register(md, 1).target.state is TargetState.SYNCING


def test_a_target_that_is_down_can_be_drained_and_that_be_ended(md):
    register(md, 1)
    state(md, 1, TargetState.DOWN)
    was = target(md, 1)
    state(md, 1, TargetState.DRAINING)
    epoch = md.map().epoch
    assert state(md, 1, TargetState.DRAINING).map_epoch == epoch, "again: nothing to do"
    state(md, 1, TargetState.SYNCING)
    assert target(md, 1) == was
    with pytest.raises(PosixError) as caught:
        state(md, 1, TargetState.SYNCING)
    assert "start its chunkserver" in str(caught.value)
    state(md, 1, TargetState.DRAINING)
    state(md, 1, TargetState.OUT)
    assert not target(md, 1).draining


def test_who_is_down_and_drained_gets_no_groups(md):
    for number in (1, 2):
        register(md, number)
    state(md, 1, TargetState.DOWN)
    state(md, 1, TargetState.DRAINING)
    groups = {group.id for group in md.map().groups}
    register(md, 3)
    assert all(1 not in group.targets for group in md.map().groups if group.id not in groups)


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


# --- groups -------------------------------------------------------------------------------------------------


def group(md, number=1):
    return next(g for g in md.map().groups if g.id == number)


def change(md, targets, epoch=None, number=1):
    current = group(md, number).epoch if epoch is None else epoch
    return md.do(m.ChangeGroup(number, current, tuple(map(TargetId, targets))), session=0)


def test_a_group_changes_in_two_steps(md):
    for number in (1, 2, 3):
        register(md, number)
    before = group(md)
    (outsider,) = {1, 2, 3} - set(before.targets)
    kept, left = before.targets
    epoch = change(md, (kept, outsider)).map_epoch
    assert epoch == md.map().epoch > before.epoch
    assert group(md) == m.PlacementGroup(before.id, before.pool, (kept, outsider), (left,), epoch)
    assert group(md).holders == (kept, outsider, left)
    assert md.do(m.SettleGroup(1, epoch), session=0).map_epoch == epoch + 1
    assert group(md) == m.PlacementGroup(before.id, before.pool, (kept, outsider), (), epoch)
    assert md.do(m.SettleGroup(1, epoch), session=0).map_epoch == epoch + 1, "nobody is leaving: no change"


def test_a_group_that_goes_back_takes_nobody_from_where_the_chunks_are(md):
    for number in (1, 2, 3, 4):
        register(md, number)
    before = group(md)
    outsiders = sorted({1, 2, 3, 4} - set(before.targets))
    change(md, outsiders)
    assert group(md).leaving == before.targets
    change(md, (before.targets[0], outsiders[0]))
    assert set(group(md).leaving) == {before.targets[1], outsiders[1]}


def test_what_was_decided_about_a_group_that_has_changed_is_refused(md):
    for number in (1, 2, 3):
        register(md, number)
    before = group(md)
    (outsider,) = {1, 2, 3} - set(before.targets)
    change(md, (outsider, before.targets[1]))
    was = md.map()
    for request in (m.ChangeGroup(1, before.epoch, before.targets), m.SettleGroup(1, before.epoch)):
        with pytest.raises(PosixError) as caught:
            md.do(request, session=0)
        assert caught.value.errno == E.EAGAIN
    for request in (m.ChangeGroup(999, 0, (1, 2)), m.SettleGroup(0, 0), m.SettleGroup(1 << 40, 0)):
        with pytest.raises(PosixError) as caught:
            md.do(request, session=0)
        assert caught.value.errno == E.ENOENT
    assert md.map() == was


@pytest.mark.parametrize("state_", [TargetState.DOWN, TargetState.DRAINING, TargetState.OUT])
def test_who_takes_no_new_data_does_not_join(md, state_):
    for number in (1, 2, 3):
        register(md, number)
    before = group(md)
    (outsider,) = {1, 2, 3} - set(before.targets)
    state(md, outsider, state_)
    with pytest.raises(PosixError) as caught:
        change(md, (before.targets[0], outsider))
    assert caught.value.errno == E.EINVAL


def test_a_group_keeps_its_size(md):
    for number in (1, 2, 3):
        register(md, number)
    for targets in ((1,), (1, 1), (1, 2, 3), ()):
        with pytest.raises(BadMessage):
            change(md, targets)


def test_only_receipts_of_members_count_once_a_group_has_changed(md):
    """What an old member stored after the change was decided may never be copied: its word is worth nothing."""
    for number in (1, 2, 3):
        register(md, number)
    ino = md.create(b"f").ino
    chunk = md.chunk()
    receipts = md.receipts(chunk)
    before = group(md)
    (outsider,) = {1, 2, 3} - set(before.targets)
    change(md, (outsider, before.targets[1]))
    with pytest.raises(StaleReceipt):
        md.do(m.CommitExtents(ino, (md.extent(chunk, 0, 10),), receipts))


def test_a_target_is_removed_once_no_group_names_it(md):
    for number in (1, 2, 3):
        register(md, number)
    remove = m.RemoveTarget(TargetId(1))
    with pytest.raises(PosixError) as caught:
        md.do(remove, session=0)
    assert caught.value.errno == E.EBUSY
    state(md, 1, TargetState.DRAINING)
    for number in [g.id for g in md.map().groups if 1 in g.targets]:
        targets = group(md, number).targets
        (outsider,) = {1, 2, 3} - set(targets)
        change(md, [outsider if t == 1 else t for t in targets], number=number)
        with pytest.raises(PosixError):
            md.do(remove, session=0)
        md.do(m.SettleGroup(number, group(md, number).epoch), session=0)
    epoch = md.map().epoch
    assert md.do(remove, session=0).map_epoch == epoch + 1
    assert [t.id for t in md.map().targets] == [2, 3]
    with pytest.raises(TargetRemoved):
        register(md, 1)
    assert [t.id for t in md.map().targets] == [2, 3]
    assert register(md, 4).target.id == 4, "its number is never given again"
    for number in (1, 0, 1 << 40):
        with pytest.raises(PosixError) as caught:
            md.do(m.RemoveTarget(TargetId(number)), session=0)
        assert caught.value.errno == E.ENOENT


def test_upkeep_is_remembered(md):
    assert md.do(m.Upkeep(), session=0) == m.Upkeep(False, 0)
    assert md.do(m.Upkeep(rebalance_paused=True), session=0) == m.Upkeep(True, 0)
    said = md.do(m.Upkeep(scrub_requested_ns=m.NOW), session=0)
    assert said == m.Upkeep(True, md.now_ns)
    assert md.read(lambda txn, _: cluster.load_upkeep(txn), None) == said
