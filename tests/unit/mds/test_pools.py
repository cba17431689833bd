"""Pools: made, changed, chosen by directories and inherited."""

import errno

import pytest

from harness.metadata import Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import PosixError
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
