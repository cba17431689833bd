"""SETATTR: who may change which attribute, and what else changes with it."""

import errno
import stat

import pytest

from harness.metadata import ALICE, BOB, ROOT, SECOND_NS, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE, InodeId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

E = errno
STRANGER = m.Credentials(5000, 5000)


@pytest.fixture
def md():
    md = Metadata()
    md.do(m.SetAttr(ROOT, ROOT_INODE, mode=0o777))
    yield md
    assert md.findings() == []


def outcome(md, ino, who, **fields):
    """The errno, or None."""
    try:
        md.do(m.SetAttr(who, ino, **fields))
    except PosixError as error:
        return error.errno
    return None


def mode_of(md, ino):
    return stat.S_IMODE(md.read(reads.getattr_, m.GetAttr(ino)).inode.mode)


CHOWN = [
    # who, uid, gid, errno; the file is alice's, group 1000
    (ROOT, 7, 8, None),
    (ROOT, None, 8, None),
    (ALICE, 1000, 1000, None),
    (ALICE, None, 1000, None),
    (ALICE, None, 2000, None),
    (ALICE, 1000, 2000, None),
    (ALICE, None, 3000, E.EPERM),
    (ALICE, 1001, None, E.EPERM),
    (ALICE, 0, None, E.EPERM),
    (ALICE, None, None, None),  # as chown(path, -1, -1) comes
    (ROOT, None, None, None),
    (BOB, None, None, E.EPERM),
    (BOB, 1001, None, E.EPERM),
    (BOB, 1000, None, E.EPERM),
    (BOB, None, 2000, E.EPERM),
    (BOB, None, 1001, E.EPERM),
    (ROOT, -1, None, E.EINVAL),
    (ROOT, None, 1 << 32, E.EINVAL),
    (ROOT, (1 << 32) - 1, None, E.EINVAL),
]


@pytest.mark.parametrize(("who", "uid", "gid", "number"), CHOWN)
def test_chown(md, who, uid, gid, number):
    made = md.create(b"f", who=ALICE, mode=0o6755)
    assert outcome(md, made.ino, who, uid=uid, gid=gid) == number
    after = md.read(reads.getattr_, m.GetAttr(made.ino)).inode
    if number is not None:
        assert after == made
        return
    assert after.uid == (made.uid if uid is None else uid)
    assert after.gid == (made.gid if gid is None else gid)
    assert after.mode == stat.S_IFREG | 0o755  # set-id bits go, also for root
    assert (after.ctime_ns, after.mtime_ns) == (md.now_ns, made.mtime_ns)
    assert after.version == made.version + 1
    assert after.data_version == made.data_version


def test_who_may_write_takes_set_id_bits_away_by_writing_and_nobody_else(md):
    """A write to a file with capabilities comes as a change of nothing, and so does chown(path, -1, -1)."""
    made = md.create(b"f", who=ALICE, mode=0o6757)
    assert outcome(md, made.ino, BOB) is None
    assert mode_of(md, made.ino) == 0o757
    made = md.create(b"g", who=ALICE, mode=0o6755)
    assert outcome(md, made.ino, BOB) == E.EPERM


def test_chown_keeps_a_lock_bit_and_a_directorys_bits(md):
    made = md.create(b"f", mode=0o6745)
    outcome(md, made.ino, ROOT, uid=1)
    assert mode_of(md, made.ino) == 0o2745
    directory = md.mkdir(b"d")
    outcome(md, directory.ino, ROOT, mode=0o6755)
    outcome(md, directory.ino, ROOT, uid=1, gid=1)
    assert mode_of(md, directory.ino) == 0o6755


CHMOD = [
    (ALICE, 1000, 0o4711, None, 0o4711),
    (ROOT, 1000, 0o7777, None, 0o7777),
    (BOB, 1000, 0o777, E.EPERM, 0o644),
    (ALICE, 2000, 0o2755, None, 0o2755),
    (ALICE, 3000, 0o2755, None, 0o755),  # not a member: the set-group-id bit is dropped
    (ROOT, 3000, 0o2755, None, 0o2755),
    (ALICE, 1000, 0o170644, None, 0o644),  # the type cannot be changed
]


@pytest.mark.parametrize(("who", "gid", "mode", "number", "result"), CHMOD)
def test_chmod(md, who, gid, mode, number, result):
    for made in (md.create(b"f", who=ALICE), md.mkdir(b"d", who=ALICE, mode=0o644)):
        md.do(m.SetAttr(ROOT, made.ino, gid=gid))
        assert outcome(md, made.ino, who, mode=mode) == number
        after = md.read(reads.getattr_, m.GetAttr(made.ino)).inode
        assert after.mode == stat.S_IFMT(made.mode) | result
        assert after.ctime_ns == md.now_ns - (SECOND_NS if number else 0)


TIMES = [
    # who, mode of alice's file, atime, mtime, errno
    (ALICE, 0o444, 5, 6, None),
    (ALICE, 0o000, m.NOW, m.NOW, None),
    (ALICE, 0o444, None, -5_000_000_000, None),  # before 1970
    (ROOT, 0o000, 5, None, None),
    (BOB, 0o666, 5, 6, E.EPERM),
    (BOB, 0o666, 5, m.NOW, E.EPERM),
    (BOB, 0o666, m.NOW, m.NOW, None),
    (BOB, 0o644, m.NOW, m.NOW, E.EACCES),
    (BOB, 0o644, None, m.NOW, E.EACCES),
]


@pytest.mark.parametrize(("who", "mode", "atime", "mtime", "number"), TIMES)
def test_times(md, who, mode, atime, mtime, number):
    made = md.create(b"f", who=ALICE, mode=mode)
    assert outcome(md, made.ino, who, atime_ns=atime, mtime_ns=mtime) == number
    after = md.read(reads.getattr_, m.GetAttr(made.ino)).inode
    if number is not None:
        assert after == made
        return
    expected = [
        {None: old, m.NOW: md.now_ns}.get(new, new) for old, new in ((made.atime_ns, atime), (made.mtime_ns, mtime))
    ]
    assert [after.atime_ns, after.mtime_ns] == expected
    assert after.ctime_ns == md.now_ns
    assert after.data_version == made.data_version


SIZES = [
    # who, mode of alice's file, size, by handle, errno
    (ALICE, 0o644, 5, False, None),
    (ALICE, 0o444, 5, False, E.EACCES),
    (ALICE, 0o444, 5, True, None),
    (BOB, 0o644, 5, False, E.EACCES),
    (BOB, 0o646, 5, False, None),
    (BOB, 0o600, 5, True, None),
    (ROOT, 0o000, 5, False, None),
    (ALICE, 0o644, -1, False, E.EINVAL),
    (ALICE, 0o644, FILE_SIZE_BYTES_MAX, False, None),
    (ALICE, 0o644, FILE_SIZE_BYTES_MAX + 1, False, E.EFBIG),
]


@pytest.mark.parametrize(("who", "mode", "size", "by_handle", "number"), SIZES)
def test_size(md, who, mode, size, by_handle, number):
    made = md.create(b"f", who=ALICE, mode=mode)
    made = md.write_inline(made.ino, 0, b"0123456789").inode
    assert outcome(md, made.ino, who, size_bytes=size, by_handle=by_handle) == number
    after, data = md.read(reads.get_extents, m.GetExtents(made.ino, 0, 10))
    if number is not None:
        assert after.inode == made
        return
    assert after.inode.size_bytes == size
    assert data == b"0123456789"[:size]
    assert after.inode.used_bytes == len(data)
    assert after.inode.mtime_ns == after.inode.ctime_ns == md.now_ns
    assert after.inode.data_version == made.data_version + 1


def test_only_regular_files_have_a_size_to_set(md):
    assert outcome(md, ROOT_INODE, ROOT, size_bytes=0) == E.EISDIR
    fifo = md.do(m.Mknod(ROOT, ROOT_INODE, b"fifo", stat.S_IFIFO | 0o666, 0)).inode
    assert outcome(md, fifo.ino, ROOT, size_bytes=0) == E.EINVAL
    assert outcome(md, InodeId(999), ROOT, size_bytes=0) == E.ESTALE


def test_a_truncation_by_anybody_but_root_takes_the_set_id_bits(md):
    made = md.create(b"f", who=ALICE, mode=0o6777)
    assert outcome(md, made.ino, ROOT, size_bytes=1) is None
    assert mode_of(md, made.ino) == 0o6777
    assert outcome(md, made.ino, BOB, size_bytes=0) is None
    assert mode_of(md, made.ino) == 0o777


def test_a_truncation_brings_the_present_time_with_it(md):
    made = md.create(b"f", who=ALICE, mode=0o600)
    assert outcome(md, made.ino, BOB, size_bytes=3, by_handle=True, mtime_ns=m.NOW) is None
    assert outcome(md, made.ino, BOB, size_bytes=3, by_handle=True, mtime_ns=7) == E.EPERM


def test_all_or_nothing(md):
    made = md.create(b"f", who=ALICE)
    assert outcome(md, made.ino, ALICE, mode=0o600, uid=1001) == E.EPERM
    assert outcome(md, made.ino, BOB, atime_ns=m.NOW, mode=0o600) == E.EPERM
    assert outcome(md, made.ino, STRANGER, size_bytes=0, mode=0o600) == E.EPERM
    assert md.read(reads.getattr_, m.GetAttr(made.ino)).inode == made


def test_mode_and_group_in_one_call_look_at_the_new_group(md):
    made = md.create(b"f", who=ALICE)
    md.do(m.SetAttr(ROOT, made.ino, gid=3000))
    assert outcome(md, made.ino, ALICE, mode=0o2755, gid=2000) is None
    assert mode_of(md, made.ino) == 0o2755


def test_whoever_may_write_a_file_may_take_its_set_id_bits_away_and_nothing_else(md):
    ino = md.create(b"tool", who=ALICE, mode=0o666).ino
    assert outcome(md, ino, ALICE, mode=0o4766) is None
    assert outcome(md, ino, STRANGER, mode=0o0666) == E.EPERM, "that takes more away"
    assert outcome(md, ino, STRANGER, mode=0o6766) == E.EPERM, "that adds"
    assert outcome(md, ino, STRANGER, mode=0o0766) is None
    assert mode_of(md, ino) == 0o766
    assert outcome(md, ino, ALICE, mode=0o4700) is None
    assert outcome(md, ino, STRANGER, mode=0o0700) == E.EACCES, "he may not write it"
