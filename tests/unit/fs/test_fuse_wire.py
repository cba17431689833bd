"""The messages of FUSE that we pack and unpack ourselves, against the layout in linux/fuse.h."""

import struct

import pytest
from msgspec.structs import replace

from harness.metadata import Metadata
from shoalfs.fs import fuse_wire as wire
from shoalfs.transport.errors import BadMessage

INODE = Metadata().create(b"f", mode=0o640)


def test_requests_are_read_from_their_offsets():
    assert wire.fallocate(struct.pack("=QQQII", 1, 2, 3, 4, 0)) == (1, 2, 3, 4)
    assert wire.lseek(struct.pack("=QQII", 1, 2, 3, 0)) == (1, 2, 3)
    assert wire.copy_file_range(struct.pack("=7Q", 1, 2, 3, 4, 5, 6, 7)) == (1, 2, 3, 4, 5, 6)
    assert wire.readdirplus(struct.pack("=QQIIQII", 1, 2, 3, 0, 0, 0, 0)) == (1, 2, 3)
    assert wire.tmpfile(struct.pack("=IIII", 8, 0o100666, 0o027, 0) + b"name\0") == (8, 0o666, 0o027)
    assert wire.lock(struct.pack("=4Q4I", 1, 2, 3, 4, 5, 6, 1, 0)) == (1, 2, 3, 4, 5, 6, True)
    assert wire.interrupted(struct.pack("=Q", 9)) == 9
    assert wire.flush_owner(struct.pack("=QIIQ", 1, 0, 0, 5)) == 5
    assert wire.flock_owner_released(struct.pack("=QIIQ", 1, 0, 2, 5)) == 5
    assert wire.flock_owner_released(struct.pack("=QIIQ", 1, 0, 1, 5)) is None


def test_an_attribute_to_be_set_is_read_with_its_flags():
    assert wire.setxattr(struct.pack("=II", 3, 2) + b"user.a\0v\0w") == (b"user.a", b"v\0w", 2)
    assert wire.setxattr(struct.pack("=II", 0, 0) + b"user.a\0") == (b"user.a", b"", 0)
    for body in (b"user.a\0v", b"user.a"):
        with pytest.raises(BadMessage):
            wire.setxattr(struct.pack("=II", 3, 0) + body)


@pytest.mark.parametrize(
    "read",
    [wire.fallocate, wire.lseek, wire.copy_file_range, wire.readdirplus, wire.tmpfile, wire.lock, wire.interrupted],
)
def test_a_short_request_is_refused(read):
    with pytest.raises(BadMessage):
        read(bytes(7))


def test_longer_requests_are_of_newer_kernels():
    assert wire.interrupted(struct.pack("=QQ", 9, 1)) == 9


def test_a_device_number_is_taken_apart_as_the_kernel_put_it_together():
    inode = wire.statx(
        INODE.__class__(**{f: getattr(INODE, f) for f in INODE.__struct_fields__} | {"rdev": 0x12345}), 0
    )
    assert struct.unpack_from("=II", inode, 32 + 128) == (0x123, 0x45)


def test_sizes_are_those_of_the_structures():
    assert len(wire.attributes(INODE)) == 88
    assert len(wire.statx(INODE, 1.0)) == 288
    assert len(wire.offset(1)) == len(wire.written(1)) == 8
    assert len(wire.locked(0, 1, 2, 3)) == 24
    made = wire.created(INODE, 5, entry_timeout_s=1.5, attr_timeout_s=0.25, keep=True, direct=False)
    assert len(made) == 128 + 16
    assert struct.unpack_from("=QQQQII", made) == (INODE.ino, 0, 1, 0, 500_000_000, 250_000_000)
    assert struct.unpack_from("=QI", made, 128) == (5, 2)


def test_times_before_the_epoch():
    body = wire.statx(replace(INODE, atime_ns=-1), 0)
    assert struct.unpack_from("=qI", body, 32 + 64) == (-1, 999_999_999)
