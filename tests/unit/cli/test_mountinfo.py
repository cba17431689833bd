"""Mounts as the kernel lists them, and which of them a path belongs to."""

import pytest

from shoalfs.fs import mountinfo
from shoalfs.fs.cli.info import locate_path
from shoalfs.transport.errors import UserError

TEXT = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 27 0:50 / /mnt rw,nosuid,nodev - fuse.shoalfs shoalfs:unix:/run/a/mds-1.sock,tcp:b:7400 rw
41 40 0:60 / /mnt/with\040space\134 rw - tmpfs tmpfs rw
42 27 0:50 /deep/er /bind rw,nosuid - fuse.shoalfs shoalfs:tcp:b:7400 rw
43 27 0:70 / /mntx rw - fuse.sshfs host: rw
44 27 0:71 / /mnt rw master:1 propagate_from:2 - fuse.shoalfs shoalfs:tcp:top:1 rw
a line of the future
"""
MOUNTS = mountinfo.parse(TEXT)


def test_every_known_line_is_parsed():
    assert [mount.point for mount in MOUNTS] == [
        "/proc",
        "/",
        "/mnt",
        "/mnt/with space\\",
        "/bind",
        "/mntx",
        "/mnt",
    ]
    assert MOUNTS[2].mds == ("unix:/run/a/mds-1.sock", "tcp:b:7400")
    assert [mount.is_shoal for mount in MOUNTS] == [False, False, True, False, True, False, True]


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/", "/"),
        ("/etc", "/"),
        ("/mnt/a", "/mnt"),
        ("/mntx", "/mntx"),
        ("/mnty", "/"),
        ("/mnt/with space\\/a", "/mnt/with space\\"),
        ("/mnt/with", "/mnt"),
    ],
)
def test_a_path_belongs_to_the_deepest_mount(path, point):
    mount = mountinfo.mount_of(path, MOUNTS)
    assert mount is not None
    assert mount.point == point


def test_of_stacked_mounts_the_last_counts():
    assert mountinfo.mount_of("/mnt/a", MOUNTS).mds == ("tcp:top:1",)
    assert mountinfo.mounted_at("/mnt", MOUNTS).mds == ("tcp:top:1",)
    assert mountinfo.mounted_at("/nowhere", MOUNTS) is None


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/bind", "/deep/er"), ("/bind/x/y", "/deep/er/x/y"), ("/mnt", "/"), ("/mnt/x", "/x")],
)
def test_a_path_is_named_from_the_root_of_its_filesystem(path, inside):
    assert mountinfo.path_inside(path, mountinfo.mount_of(path, MOUNTS)) == inside


def test_info_finds_the_mount_of_a_path_and_refuses_others(tmp_path):
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mnt")
    mount = mountinfo.Mount("0:1", "/", str(tmp_path / "mnt"), "fuse.shoalfs", "shoalfs:tcp:a:1")
    assert locate_path(str(tmp_path / "link" / "file"), [mount]) == (mount, "/file")
    with pytest.raises(UserError, match="not in a mount of shoalfs"):
        locate_path(str(tmp_path / "file"), [mount])


def test_this_machine_can_be_read():

    assert mountinfo.mount_of("/proc/self", mountinfo.mounts()).fstype == "proc"


def test_a_mount_of_a_directory_of_the_cluster():
    text = "40 27 0:50 / /mnt rw - fuse.shoalfs shoalfs:tcp:a:1,tcp:b:1,subdir=/home/x,y rw"
    (mount,) = mountinfo.parse(text)
    assert mount.mds == ("tcp:a:1", "tcp:b:1")
    assert mount.subdir == "/home/x,y"
    assert mountinfo.path_inside("/mnt/file", mount) == "/home/x,y/file"
    assert mountinfo.path_inside("/mnt", mount) == "/home/x,y"
