"""What the kernel is told of the entries of a directory, how much of it fits, and how it is packed."""

import struct

import pytest
import trio
from msgspec.structs import replace

from harness.metadata import Metadata
from harness.vfs_world import world
from shoalfs.fs import fuse_wire as wire
from shoalfs.fs import native
from shoalfs.fs.directory_pages import DirectoryPages, Timeouts
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.messages import DirEntry, SetAttr
from shoalfs.transport.errors import PosixError
from shoalfs.transport.ids import ROOT_INODE
from unit.fs.test_coherent import leased

TIMEOUTS = Timeouts(1.5, 0.25)
ENTRY = struct.Struct("=QQQQII88sQQII")
INODE = Metadata().create(b"f", mode=0o640)
PLENTY = 1 << 20


@pytest.fixture
async def cluster(tmp_path):
    async with world(tmp_path, chunkservers=1, replicas=1) as running:
        yield running


def pages_of(client, *, keeps_names=True, known=None):
    return DirectoryPages(client.vfs, lambda: keeps_names, TIMEOUTS, known)


async def names_of(pages, handle, size_bytes):
    """All parts of the listing; of each the names."""
    parts, cookie = [], 0
    while entries := (await pages.after(handle, cookie, size_bytes)).entries:
        parts.append([entry[0] for entry in entries])
        cookie = entries[-1][2]
    return parts


def by_name(part):
    return {
        name: (inode, keeps_name, keeps_attributes) for name, inode, _, keeps_name, keeps_attributes in part.entries
    }


async def filled(client, count=40):
    await leased(client)
    names = [b"n" * (1 + number % 9) + b"%03d" % number for number in range(count)]
    for name in names:
        await client.write_file(name, b"")
    await client.vfs.closing.settle()
    return names


@pytest.mark.parametrize("page", [7, 1000])
async def test_every_name_is_told_once_in_parts_that_fit(cluster, monkeypatch, page):
    monkeypatch.setattr("shoalfs.fs.listings.READDIR_ENTRIES_MAX", page)
    async with cluster.client() as one:
        names = await filled(one)
        pages = pages_of(one)
        for size in (176, 200, 1000, 4096, PLENTY):
            parts = await names_of(pages, one.vfs.opendir(ROOT, ROOT_INODE), size)
            assert sorted(name for part in parts for name in part) == sorted([b".", b"..", *names])
            assert parts[0][0] == b"."
            used = [sum(map(wire.entry_bytes, part)) for part in parts]
            assert max(used) <= size
            for index, part in enumerate(parts[:-1]):
                assert used[index] + wire.entry_bytes(parts[index + 1][0]) > size, part
        assert len(parts) == 1


async def test_too_little_room_for_anything_is_the_end(cluster):
    async with cluster.client() as one:
        await filled(one, 1)
        handle = one.vfs.opendir(ROOT, ROOT_INODE)
        for cookie in (0, 1, 2):
            assert (await pages_of(one).after(handle, cookie, 100)).entries == []


async def test_what_is_leased_may_be_kept_and_nothing_else(cluster):
    async with cluster.client() as one:
        (name,) = await filled(one, 1)
        handle = one.vfs.opendir(ROOT, ROOT_INODE)
        part = await pages_of(one).after(handle, 0, PLENTY)
        assert by_name(part)[name][1:] == (True, True)
        assert by_name(part)[b"."][1:] == by_name(part)[b".."][1:] == (False, False)
        assert (part.entry_s, part.attr_s) == (1.5, 0.25)
        part = await pages_of(one, keeps_names=False).after(handle, 0, PLENTY)
        assert by_name(part)[name][1:] == (False, True)
        ino = by_name(part)[name][0].ino
        one.coherent.cache.drop(inodes=[ino])
        part = await pages_of(one).after(handle, 2, PLENTY)
        assert by_name(part)[name][1:] == (True, True), "asked for anew"
        shown = one.vfs.shown(ROOT_INODE, [DirEntry(3, name, replace(INODE, ino=999))], keeps_names=True)
        assert [each[3:] for each in shown] == [(False, False)], (
            "the name leads elsewhere, and of this inode nothing is known"
        )


async def test_of_a_name_and_an_inode_that_were_dropped_since_nothing_may_be_kept(cluster):
    async with cluster.client() as one, cluster.client() as two:
        await filled(one, 2)
        await leased(two)
        handle = two.vfs.opendir(ROOT, ROOT_INODE)
        with trio.fail_after(5):  # until the other's write leases have ended
            while True:
                first = await pages_of(two).after(handle, 0, PLENTY)
                if all(entry[4] for entry in first.entries[2:]):
                    break
                await trio.sleep(0.02)
        (a, inode, cookie, _, _), (b, *_) = first.entries[2:]
        await one.vfs.setattr(SetAttr(ROOT, inode.ino, mode=0o600))
        await one.vfs.unlink(ROOT, ROOT_INODE, b)
        # Of the page that came before the changes.
        later = by_name(await pages_of(two).after(handle, cookie, PLENTY))
        assert later[b][1:] == (False, False)
        shown = two.vfs.shown(ROOT_INODE, [DirEntry(cookie, a, inode)], keeps_names=True)
        assert shown[0][3:] == (True, False)


async def test_bytes_that_are_not_committed_show_and_are_not_kept(cluster):
    async with cluster.client() as one:
        (name,) = await filled(one, 1)
        number, _ = await one.open(name, 2)
        await one.vfs.write(number, 0, b"12345")
        part = await pages_of(one).after(one.vfs.opendir(ROOT, ROOT_INODE), 0, PLENTY)
        inode, keeps_name, keeps_attributes = by_name(part)[name]
        assert (inode.size_bytes, keeps_name, keeps_attributes) == (5, True, False)
        await one.close(number)


async def test_without_leases_nothing_may_be_kept(cluster):
    async with cluster.client() as one:
        (name,) = await filled(one, 1)
        handle = one.vfs.opendir(ROOT, ROOT_INODE)
        one.session.leased_until = 0.0
        part = await pages_of(one).after(handle, 0, PLENTY)
        assert by_name(part)[name][1:] == (False, False)
        assert (part.entry_s, part.attr_s) == (0.0, 0.0)


async def test_a_damaged_inode_is_told_by_number_and_type(cluster):
    async with cluster.client() as one:
        await filled(one, 1)
        entries = [DirEntry(3, b"bad", replace(INODE, ino=77), damaged=True)]
        assert one.vfs.shown(ROOT_INODE, entries, keeps_names=True) == [(b"bad", entries[0].inode, 3, False, False)]


class Known:
    """Of a mount that is told of no open. ``meanwhile``: what happens while it waits."""

    def __init__(self, meanwhile):
        self.calls, self.references, self._meanwhile = [], [], meanwhile

    async def before_attributes(self, inode):
        self.calls.append(inode.ino)
        await self._meanwhile(inode)

    def told(self, inode):
        self.references.append(inode.ino)


async def test_what_changes_between_its_announcement_and_the_reply_is_asked_for_again(cluster):
    async with cluster.client() as one:
        names = await filled(one, 2)
        handle = one.vfs.opendir(ROOT, ROOT_INODE)
        changed = []

        async def change_the_first(inode):
            if changed != [inode.ino] and changed:
                await one.vfs.setattr(SetAttr(ROOT, changed[0], mode=0o600))
            changed.append(inode.ino)

        pages = pages_of(one, known=Known(change_the_first))
        part = await pages.after(handle, 0, PLENTY)
        told = by_name(part)
        first, second = (name for name in told if name in names)
        assert told[first][0].mode & 0o777 == 0o600
        assert [told[name][2] for name in (first, second)] == [False, True]
        for entry in part.entries:
            pages.told(entry)
        assert pages._known.references == pages._known.calls == [told[first][0].ino, told[second][0].ino]


async def test_who_may_not_read_is_told(cluster):
    async with cluster.client() as one:
        await leased(one)
        directory = await one.vfs.mkdir(ROOT, ROOT_INODE, b"d", 0o700)
        other = replace(ROOT, uid=5, gid=5)
        with pytest.raises(PosixError):
            await pages_of(one).after(one.vfs.opendir(other, directory.ino), 0, PLENTY)


# --- the compiled part ------------------------------------------------------------------------------------------------


def unpacked(body):
    found = []
    while body:
        node, generation, entry_s, attr_s, entry_ns, attr_ns, attributes, ino, cookie, length, kind = ENTRY.unpack_from(
            body
        )
        name = body[ENTRY.size : ENTRY.size + length]
        assert (node, generation) == (ino, 0)
        assert not any(body[ENTRY.size + length : wire.entry_bytes(name)])
        found.append((name, attributes, cookie, entry_s + entry_ns / 1e9, attr_s + attr_ns / 1e9, kind))
        body = body[wire.entry_bytes(name) :]
    return found


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 254, 255])
def test_an_entry_is_packed_as_the_structure_says(length):
    inode = replace(
        INODE,
        size_bytes=(1 << 62) + 1,
        used_bytes=513,
        atime_ns=-1,
        mtime_ns=-(1 << 62),
        ctime_ns=1_700_000_000_123_456_789,
        rdev=0xFFFFFFFF,
        uid=0xFFFFFFFE,
        nlink=3,
    )
    name = b"n" * length
    told = [(name, inode, (1 << 63) - 1, True, True), (name, INODE, 7, False, True), (name, INODE, 8, True, False)]
    assert unpacked(native.shim.pack_entries(told, 1.5, 0.25)) == [
        (name, wire.attributes(inode), (1 << 63) - 1, 1.5, 0.25, 8),
        (name, wire.attributes(INODE), 7, 0.0, 0.25, 8),
        (name, wire.attributes(INODE), 8, 1.5, 0.0, 8),
    ]
    assert native.shim.pack_entries([], 0.0, 0.0) == b""


@pytest.mark.parametrize(
    "wrong",
    [
        (b"n" * 256, INODE, 1, True, True),
        ("text", INODE, 1, True, True),
        (b"n", None, 1, True, True),
        (b"n", replace(INODE, size_bytes=1 << 64), 1, True, True),
        (b"n", INODE, 1, True),
        [b"n", INODE, 1, True, True],
    ],
    ids=["long", "text", "nothing", "large", "short", "list"],
)
def test_what_is_no_entry_is_refused(wrong):
    with pytest.raises((TypeError, ValueError, AttributeError, OverflowError)):
        native.shim.pack_entries([(b"a", INODE, 1, True, True), wrong], 0.0, 0.0)


@pytest.mark.parametrize("timeout_s", [-0.1, 1e9, float("nan"), float("inf")])
def test_what_is_no_timeout_is_refused(timeout_s):
    for timeouts in ((timeout_s, 0.0), (0.0, timeout_s)):
        with pytest.raises(ValueError, match="seconds"):
            native.shim.pack_entries([], *timeouts)
