"""Whose a target directory is."""

import random

import pytest

from chunkserver_support import CLUSTER, TARGET, UUID, Rig
from shoalfs.chunkserver.directory import TargetDirectory, cluster_of
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.transport.errors import UserError


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(TARGET)
    return text


def test_a_directory_keeps_its_identity(rig):
    rig.store.close()
    assert rig.open(fresh_uuid=b"x" * 16).uuid == UUID
    assert cluster_of(rig.disk, TARGET) == CLUSTER


def test_a_directory_that_is_none_has_no_cluster():
    disk = MemoryDisk()
    assert cluster_of(disk, "/nowhere") is None
    disk.make_dirs("/empty")
    assert cluster_of(disk, "/empty") is None


def test_a_directory_of_another_cluster_is_refused(rig):
    rig.store.close()
    with pytest.raises(UserError) as error:
        rig.open(cluster_id=b"x" * 16)
    assert CLUSTER.hex() in one_line(error)
    rig.open()


def test_a_directory_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    disk = MemoryDisk()
    disk.make_dirs(TARGET)
    disk.open(f"{TARGET}/thesis.tex", create=True)
    with pytest.raises(UserError) as error:
        Rig(tmp_path / "index", disk=disk)
    assert "thesis.tex" in one_line(error)
    assert disk.list_dir(TARGET) == ["thesis.tex"]


def test_a_fresh_filesystem_is_empty(make_rig):
    disk = MemoryDisk()
    disk.make_dirs(f"{TARGET}/lost+found")
    make_rig(disk=disk)


def test_two_servers_never_share_a_directory(rig, tmp_path):
    with pytest.raises(UserError, match="in use"):
        Rig(tmp_path / "other", disk=rig.disk)
    rig.store.close()
    rig.open()


@pytest.mark.parametrize("at", [3, 30, 140])
def test_a_damaged_identity_is_refused(rig, at):
    rig.store.close()
    rig.flip(f"{TARGET}/target.json", at, 1)
    with pytest.raises(UserError, match="is damaged"):
        rig.open()


def test_a_newer_format_is_refused(rig, monkeypatch):
    rig.store.close()
    monkeypatch.setattr("shoalfs.chunkserver.directory.FORMAT", 0)
    with pytest.raises(UserError, match="has format 1"):
        rig.open()


def test_a_crash_while_the_directory_is_initialised_leaves_it_usable():
    for seed in range(30):
        disk = MemoryDisk()
        for operation in ("pwritev", "fdatasync", "rename", "sync_dir"):
            disk.fail(operation, 5)
            with pytest.raises(OSError, match="Input/output"):
                TargetDirectory(disk, TARGET, cluster_id=CLUSTER, fresh_uuid=UUID)
            disk.power_cut(random.Random(seed))
        TargetDirectory(disk, TARGET, cluster_id=CLUSTER, fresh_uuid=UUID)


def test_the_state_survives_or_is_unknown(rig):
    directory = rig.store._directory
    directory.write_state(clean=True)
    assert directory.read_state().clean
    rig.flip(f"{TARGET}/state.json", 5, 1)
    assert directory.read_state() is None
