"""Options of mount(8), and its helper mount.shoal."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.cluster import COMMAND_S, Cluster
from harness.refusals import failing
from shoalfs.fs import mountinfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) takes root")


@contextmanager
def helper() -> Iterator[None]:
    """Where mount(8) looks for it, there is a helper: ours, if there is none. Only one test of this machine at a time
    may think so, or the first to end would take it from the others."""
    place = Path("/sbin/mount.shoal")
    one = os.open(place.parent, os.O_RDONLY)
    made = False
    try:
        fcntl.flock(one, fcntl.LOCK_EX)
        made = not place.exists()
        if made:
            place.unlink(missing_ok=True)  # of a checkout that is gone
            place.symlink_to(Path(sys.executable).with_name("mount.shoal"))
        yield
    finally:
        if made:
            place.unlink()
        os.close(one)


@contextmanager
def mounted(cluster: Cluster, options: str) -> Iterator[Path]:
    """One more mount with these options, made by mount(8) with our helper, and taken off by umount(8)."""
    (source,) = [mount.mds for mount in mountinfo.mounts() if mount.point == str(cluster.point)]
    point = Path(tempfile.mkdtemp(prefix="option-", dir=cluster.root))
    try:
        command = ["mount", "-t", "shoal", ",".join(source), str(point), "-o", options]
        log = {"SHOAL_STATE": str(cluster.state)}
        with helper():
            done = subprocess.run(
                command, env={**os.environ, **log}, capture_output=True, text=True, timeout=COMMAND_S, check=False
            )
        assert done.returncode == 0, done.stderr
        yield point
    finally:
        subprocess.run(["umount", str(point)], capture_output=True, timeout=COMMAND_S, check=False)
        point.rmdir()


def test_a_directory_of_the_cluster_as_root(mnt: Path, cluster: Cluster):
    (mnt / "sub" / "inner").mkdir(parents=True)
    (mnt / "sub" / "file").write_text("seen")
    with mounted(cluster, f"subdir=/{mnt.name}/sub,noatime") as point:
        assert sorted(os.listdir(point)) == ["file", "inner"]
        assert (point / "file").read_text() == "seen"
        (point / "new").write_text("made there")
        assert (mnt / "sub" / "new").read_text() == "made there"
        (mnt / "sub" / "later").write_text("made here")
        assert sorted(os.listdir(point)) == ["file", "inner", "later", "new"]
        (mnt / "sub").chmod(0o711)
        assert point.stat().st_mode == (mnt / "sub").stat().st_mode
        os.setxattr(point, "user.a", b"of the root")
        assert os.getxattr(mnt / "sub", "user.a") == b"of the root"
        os.rename(point / "new", point / "inner" / "moved")
        assert os.listdir(mnt / "sub" / "inner") == ["moved"]
        assert os.path.samestat(os.stat(point / ".."), os.stat(cluster.root))
        held = json.loads(cluster.run("info", point / "inner" / "moved", "-o", "json", "--state", cluster.state))
        assert held["ino"] == (mnt / "sub" / "inner" / "moved").stat().st_ino
        descriptor = os.open(point, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.close(descriptor)
        shutil.rmtree(point / "inner")
    assert sorted(os.listdir(mnt / "sub")) == ["file", "later"]


def test_a_mount_that_is_read_only(mnt: Path, cluster: Cluster):
    (mnt / "file").write_text("to be read")
    with mounted(cluster, f"ro,relatime,subdir={mnt.name}") as point:
        assert (point / "file").read_text() == "to be read"
        for call in (
            lambda: (point / "new").write_text("x"),
            lambda: (point / "file").open("r+b"),
            lambda: os.truncate(point / "file", 0),
            lambda: (point / "file").unlink(),
            lambda: (point / "new").mkdir(),
            lambda: (point / "file").chmod(0o600),
            lambda: os.chown(point / "file", 1, 1),
            lambda: os.rename(point / "file", point / "new"),
            lambda: os.link(point / "file", point / "new"),
            lambda: os.symlink("x", point / "new"),
            lambda: os.mkfifo(point / "new"),
            lambda: os.utime(point / "file"),
            lambda: os.setxattr(point / "file", "user.a", b""),
        ):
            assert failing(call) == errno.EROFS
        options = {mount.point: mount for mount in mountinfo.mounts()}[str(point)]
        assert options.is_shoal


@pytest.mark.parametrize("options", ["subdir=/absent", "nonsense", "attr-timeout-ms=soon"])
def test_a_wrong_option_is_one_line(cluster: Cluster, tmp_path: Path, options: str):
    (source,) = [mount.mds for mount in mountinfo.mounts() if mount.point == str(cluster.point)]
    helper = Path(sys.executable).with_name("mount.shoal")
    done = subprocess.run(
        [str(helper), ",".join(source), str(tmp_path), "-o", options],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={**os.environ, "SHOAL_STATE": str(cluster.state)},
    )
    assert done.returncode in (1, 32)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert options.partition("=")[0].replace("-", "_") in done.stderr.replace("-", "_")
    assert mountinfo.mounted_at(str(tmp_path), mountinfo.mounts()) is None
