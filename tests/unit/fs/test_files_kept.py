"""How much a mount remembers of closed files, and that it never forgets an open one (fs/data_path.py)."""

import os

import pytest
import trio

from harness.vfs_world import world
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


async def forgotten(client, ino):
    with trio.fail_after(10):
        while client.data_path.find(ino) is not None:
            await trio.sleep(0.01)


async def test_small_files_are_forgotten_by_their_bytes(cluster, monkeypatch):
    monkeypatch.setattr("shoalfs.fs.data_path.INLINE_KEPT_BYTES_MAX", 25_000)
    async with cluster.client() as one:
        first = await one.write_file(b"first", b"x" * 10_000)
        second = await one.write_file(b"second", b"x" * 10_000)
        assert one.data_path.find(first) is not None
        await one.write_file(b"third", b"x" * 10_000)
        await forgotten(one, first)
        assert one.data_path.find(second) is not None
        assert await one.read_file(b"first") == b"x" * 10_000


@pytest.mark.parametrize("limit", ["INLINE_KEPT_BYTES_MAX", "FILES_KEPT_MAX"])
async def test_an_open_file_is_not_forgotten(cluster, monkeypatch, limit):
    monkeypatch.setattr(f"shoalfs.fs.data_path.{limit}", 1)
    async with cluster.client() as one:
        ino, number = await one.make(b"open")
        await one.vfs.write(number, 0, b"x" * 100)
        await one.vfs.fsync(number)
        for name in (b"a", b"b", b"c"):
            await forgotten(one, await one.write_file(name, b"y" * 100))
        again, _ = await one.vfs.open(ROOT, ino, os.O_RDONLY)
        await one.vfs.write(number, 0, b"z")
        assert bytes(await one.vfs.read(again, 0, 2)) == b"zx", "both handles have the same bytes"
        await one.close(number)
        await one.close(again)
        await one.write_file(b"d", b"y" * 100)
        await forgotten(one, ino)
