"""Pools: made, changed, chosen by directories and inherited."""

import errno

import pytest

from harness.metadata import Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import placement, reads
from shoalfs.mds.pool_users import pool_users
from shoalfs.transport.errors import PosixError, StaleReceipt
from shoalfs.transport.ids import ROOT_INODE

NAME = b"trusted.shoal.pool"
ROOT = m.ROOT_CREDENTIALS


@pytest.fixture
def md():
    md = Metadata()
    md.add_targets(6)
    return md


def make(md, name="cold", replicas=6, data=4, min_ack=0):
    return md.do(m.CreatePool(name, replicas, data, min_ack), session=0)


def use(md, ino, name, who=ROOT):
    return md.do(m.SetXattr(who, ino, NAME, name)).inode


def pool_of(md, ino):
    return md.read(reads.getxattr, m.GetXattr(ROOT, ino, NAME)).value


@pytest.mark.parametrize(("replicas", "data", "min_ack"), [(6, 4, 5), (3, 2, 3), (2, 1, 1), (3, 1, 2)])
def test_a_new_pool_has_groups_of_its_width_on_distinct_targets_and_the_usual_min_ack(md, replicas, data, min_ack):
    before = md.map()
    made = make(md, replicas=replicas, data=data)
    after = md.map()
    assert made.pool == m.Pool(2, "cold", replicas, min_ack, data) == after.pools[1]
    assert after.epoch == made.map_epoch == before.epoch + 1
    groups = [group for group in after.groups if group.pool == 2]
    assert len(groups) == 6 * 16
    assert all(len(set(group.targets)) == replicas for group in groups)
    assert [group for group in after.groups if group.pool == 1] == list(before.groups)
    assert not md.findings()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"name": "hot"}, errno.EEXIST),
        ({"name": ""}, errno.EINVAL),
        ({"name": "a b"}, errno.EINVAL),
        ({"min_ack": 3}, errno.EINVAL),  # fewer than it takes to read
        ({"min_ack": 7}, errno.EINVAL),
        ({"data": 6}, errno.EINVAL),  # no parity
        ({"data": 7}, errno.EINVAL),
        ({"data": 0}, errno.EINVAL),
        ({"replicas": 7}, errno.ENOSPC),
        ({"replicas": 100, "data": 50}, errno.EINVAL),
        ({"replicas": 0, "data": 1}, errno.EINVAL),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(md, fields, code):
    before = md.map()
    with pytest.raises(PosixError) as refused:
        make(md, **fields)
    assert refused.value.errno == code
    assert md.map() == before


def test_there_is_an_end_to_pools(md):
    for number in range(15):
        make(md, f"p{number}", replicas=1, data=1)
    with pytest.raises(PosixError) as refused:
        make(md, "one-more", replicas=1, data=1)
    assert refused.value.errno == errno.ENOSPC


def test_min_ack_and_name_can_be_changed(md):
    make(md)
    assert md.do(m.SetPool("cold", "colder", 6), session=0).pool == m.Pool(2, "colder", 6, 6, 4)
    epoch = md.map().epoch
    assert md.do(m.SetPool("colder", min_ack=6), session=0).map_epoch == epoch
    for request, code in [
        (m.SetPool("cold"), errno.ENOENT),
        (m.SetPool("colder", "hot"), errno.EEXIST),
        (m.SetPool("colder", min_ack=3), errno.EINVAL),
    ]:
        with pytest.raises(PosixError) as refused:
            md.do(request, session=0)
        assert refused.value.errno == code


def test_what_is_made_in_a_directory_goes_to_its_pool_and_what_was_there_stays(md):
    make(md)
    top = md.mkdir(b"top").ino
    old = md.create(b"old", parent=top).ino
    assert use(md, top, b"cold").pool == 2
    new = md.create(b"new", parent=top)
    below = md.mkdir(b"below", parent=top)
    assert (new.pool, below.pool, md.create(b"deep", parent=below.ino).pool) == (2, 2, 2)
    assert [pool_of(md, ino) for ino in (old, new.ino, top, ROOT_INODE)] == [b"hot", b"cold", b"cold", b"hot"]
    assert use(md, top, b"hot").pool == 1


def test_only_root_chooses_and_only_what_there_is_and_only_for_directories(md):
    make(md)
    top, file = md.mkdir(b"top").ino, md.create(b"file").ino
    for ino, name, who, code in [
        (top, b"cold", m.Credentials(1000, 1000), errno.EPERM),
        (top, b"warm", ROOT, errno.EINVAL),
        (file, b"cold", ROOT, errno.EOPNOTSUPP),
    ]:
        with pytest.raises(PosixError) as refused:
            use(md, ino, name, who)
        assert refused.value.errno == code


def test_a_target_that_comes_later_leads_groups_of_every_pool(md):
    make(md)
    md.do(m.RegisterTarget(bytes([9]) * 16, "node9", "unix:/9", 1 << 40), session=0)
    led = [group.pool for group in md.map().groups if group.targets[0] == 7]
    assert (led.count(1), led.count(2)) == (16, 16)


# --- another number of replicas --------------------------------------------------------------------------------------


def groups_of(md, pool):
    return [group for group in md.map().groups if group.pool == pool]


def test_more_replicas_are_added_to_every_group_and_nobody_goes(md):
    before = groups_of(md, 1)
    changed = md.do(m.SetPool("hot", replicas=3), session=0)
    after = groups_of(md, 1)
    assert (changed.pool.replicas, changed.pool.min_ack) == (3, 2)
    assert [group.targets[:2] for group in after] == [group.targets for group in before]
    assert all(len(set(group.targets)) == 3 and not group.leaving for group in after)
    assert {group.epoch for group in after} == {changed.map_epoch}, "nobody was seen to have all of it yet"
    had, has = placement.memberships(before), placement.memberships(after)
    assert max(has.values()) / min(has.values()) <= max(had.values()) / min(had.values()), (had, has)
    assert not md.findings()


def test_fewer_replicas_leave_the_others_to_be_read_from_until_they_are_not_needed(md):
    md.do(m.SetPool("hot", replicas=3), session=0)
    before = groups_of(md, 1)
    changed = md.do(m.SetPool("hot", replicas=1), session=0)
    assert (changed.pool.replicas, changed.pool.min_ack) == (1, 1), "no more acknowledgements than replicas"
    for old, new in zip(before, groups_of(md, 1), strict=True):
        assert new.targets == old.targets[:1]
        assert set(new.holders) == set(old.holders)
    assert not md.findings()


def test_who_is_gone_is_left_out_first(md):
    md.do(m.SetTargetState(1, m.TargetState.OUT), session=0)
    md.do(m.SetPool("hot", replicas=1), session=0)
    assert all(group.targets != (1,) for group in groups_of(md, 1))


def test_who_is_leaving_may_come_back_as_another_member(md):
    md.do(m.SetPool("hot", replicas=1), session=0)
    md.do(m.SetPool("hot", replicas=6), session=0)
    assert all(len(group.targets) == 6 and not group.leaving for group in groups_of(md, 1))


@pytest.mark.parametrize(
    ("name", "replicas", "code"),
    [("hot", 0, errno.EINVAL), ("hot", 9, errno.EINVAL), ("hot", 7, errno.ENOSPC), ("cold", 5, errno.EINVAL)],
)
def test_replicas_that_cannot_be_are_refused_and_change_nothing(md, name, replicas, code):
    make(md)
    before = md.map()
    with pytest.raises(PosixError) as refused:
        md.do(m.SetPool(name, replicas=replicas), session=0)
    assert refused.value.errno == code
    assert md.map() == before


def test_what_was_decided_of_a_group_before_it_was_resized_is_refused(md):
    group = groups_of(md, 1)[0]
    md.do(m.SetPool("hot", replicas=3), session=0)
    with pytest.raises(PosixError) as refused:
        md.do(m.ChangeGroup(group.id, group.epoch, group.targets), session=0)
    assert refused.value.errno == errno.EAGAIN


def test_receipts_of_two_are_not_enough_for_three(md):
    ino = md.create(b"f").ino
    chunk = md.chunk()
    receipts = md.receipts(chunk)
    md.do(m.SetPool("hot", replicas=3, min_ack=3), session=0)
    with pytest.raises(StaleReceipt):
        md.do(m.CommitExtents(ino, (md.extent(chunk, 0, 100),), receipts))
    md.write(ino, 0, 100)


# --- removing --------------------------------------------------------------------------------------------------------


def users(md, pool, after=0):
    return md.read(pool_users, m.ListPoolUsers(pool, after))


def close(md, name="cold"):
    return md.do(m.SetPool(name, closing=True), session=0).pool.closing_epoch


def refusal(md, request):
    with pytest.raises(PosixError) as refused:
        md.do(request, session=0)
    return refused.value.errno


def test_a_pool_that_nobody_uses_is_removed_with_its_groups(md):
    make(md)
    md.do(m.RemovePool("cold", close(md)), session=0)
    map_ = md.map()
    assert [pool.name for pool in map_.pools] == ["hot"]
    assert {group.pool for group in map_.groups} == {1}
    assert not md.findings()
    assert make(md).pool.id == 2


def test_it_is_removed_only_while_it_is_closing_since_it_was_looked(md):
    make(md)
    assert refusal(md, m.RemovePool("cold", 0)) == errno.EAGAIN
    first = close(md)
    assert close(md) == first, "closing again changes nothing"
    md.do(m.SetPool("cold", closing=False), session=0)
    assert refusal(md, m.RemovePool("cold", first)) == errno.EAGAIN
    second = close(md)
    assert refusal(md, m.RemovePool("cold", first)) == errno.EAGAIN
    assert refusal(md, m.RemovePool("warm", second)) == errno.ENOENT
    md.do(m.RemovePool("cold", second), session=0)


def test_a_pool_that_is_closing_is_chosen_by_nobody_and_gets_no_groups(md):
    make(md)
    top = md.mkdir(b"top").ino
    close(md)
    with pytest.raises(PosixError) as refused:
        use(md, top, b"cold")
    assert refused.value.errno == errno.EBUSY
    md.do(m.RegisterTarget(bytes([9]) * 16, "node9", "unix:/9", 1 << 40), session=0)
    assert [group.pool for group in md.map().groups if group.targets[0] == 7] == [1] * 16


def test_whoever_uses_a_pool_is_found(md, monkeypatch):
    make(md)
    assert users(md, 2) == m.PoolUsers(0, 0, 0, 0)
    top = md.mkdir(b"top").ino
    use(md, top, b"cold")
    file = md.create(b"f", parent=top)
    md.do(m.Symlink(ROOT, top, b"s", b"target"))
    assert users(md, 2) == m.PoolUsers(1, 1, top, 0)
    close(md)
    assert md.create(b"late", parent=top).pool == 1, "nobody is added to them"
    md.do(m.SetPool("cold", closing=False), session=0)
    late = md.create(b"later", parent=top)
    monkeypatch.setattr("shoalfs.mds.pool_users._PAGE", 1)
    after, found = 0, []
    while True:
        page = users(md, 2, after)
        found += [page.example] if page.example else []
        after = page.next_ino
        if not after:
            break
    assert found == [top, file.ino, late.ino]
    assert users(md, 1, 0).example == ROOT_INODE


def test_chunks_keep_a_pool(md):
    make(md, replicas=2, data=1)
    top = md.mkdir(b"top").ino
    use(md, top, b"cold")
    file = md.create(b"f", parent=top).ino
    group = groups_of(md, 2)[-1]
    md.commit(file, md.extent(md.chunk(group.id), 0, 100))
    epoch = close(md)
    assert refusal(md, m.RemovePool("cold", epoch)) == errno.EBUSY
    md.do(m.SetAttr(ROOT, file, size_bytes=0))
    assert refusal(md, m.RemovePool("cold", epoch)) == errno.EBUSY, "it is garbage, which is to be deleted"
    (chunk,) = md.read(lambda txn, _: reads.garbage_before(txn, 1 << 62, 10), None)
    md.do(m.ChunkList((chunk,)), op=m.Op.DROP_GARBAGE, session=0)
    md.do(m.RemovePool("cold", epoch), session=0)
