"""FileData over a cluster in memory: how much it keeps, for how long, and what is lost with it."""

import errno
import random

import pytest
import trio
import trio.lowlevel
import trio.testing

from shoalfs.mds.messages import Op, SetAttr
from shoalfs.transport.errors import (
    PeerUnreachable,
    PosixError,
    StaleReceipt,
    TargetFull,
)
from shoalfs.transport.limits import WRITE_BACK_MS
from unit.fs.world import CHUNK, KIB, WHO, World, durable_copies, new_file, noise


@pytest.mark.parametrize("step", [8 * KIB, 48 * KIB])
async def test_the_budget_bounds_what_is_dirty_by_one_request(step: int, autojump_clock) -> None:
    world = World()
    limit = 4 * CHUNK
    async with world.running(dirty_bytes=limit) as mount:
        files = [await new_file(world, mount) for _ in range(3)]
        data = noise(12 * CHUNK)
        highest = 0

        async def writer(file) -> None:
            nonlocal highest
            for at in range(0, len(data), step):
                await file.write(at, data[at : at + step])
                highest = max(highest, mount.dirty_bytes)

        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(writer, file)
        for file in files:
            await file.flush(durable=False)
            assert world.service.read_back(file.ino) == data
        assert highest <= limit + step + KIB
        assert mount.dirty_bytes == 0


async def test_writers_are_told_when_no_room_can_be_made(autojump_clock) -> None:
    world = World()
    world.servers.on_put = lambda target, chunk: TargetFull()
    async with world.running(dirty_bytes=2 * CHUNK) as mount:
        file, other = await new_file(world, mount), await new_file(world, mount)
        await file.write(0, noise(2 * CHUNK))
        with pytest.raises(PosixError) as caught:
            await other.write(0, b"x")
        assert caught.value.errno == errno.ENOSPC
        world.servers.on_put = lambda target, chunk: None
        await trio.sleep(60)
        await other.write(0, b"x")
        await other.flush(durable=False)
    assert world.service.read_back(other.ino) == b"x"


async def test_age_commits_what_nobody_flushes(autojump_clock) -> None:
    world = World()
    async with world.running() as mount:
        files = [await new_file(world, mount) for _ in range(40)]
        for file in files:
            await file.write(0, b"x" * 10)
        await trio.sleep(WRITE_BACK_MS / 1000 - 1)
        assert not world.service.calls
        await trio.sleep(1.5)
        assert world.service.calls == {Op.COMMIT_INLINE: 40}
        assert mount.dirty_bytes == 0


async def test_discard_gives_the_memory_back() -> None:
    world = World()
    mount = world.mount()
    file = await new_file(world, mount)
    await file.write(0, noise(CHUNK))
    assert mount.dirty_bytes > CHUNK
    file.discard()
    assert mount.dirty_bytes == 0
    assert not file.needs_fsync


async def test_a_crash_leaves_a_prefix_of_the_commits_each_whole() -> None:
    world = World()
    file = await new_file(world, world.mount())
    for at in range(3000):
        await file.write(at * 100, bytes([1 + at % 255]) * 50)
    commits = 0

    def die_at_third(op, request):
        nonlocal commits
        commits += 1
        return PeerUnreachable() if commits == 3 else None

    world.service.before = die_at_third
    with pytest.raises(PeerUnreachable):
        await file.flush(durable=False)
    data = world.service.read_back(file.ino)
    records = len(data) // 100 + 1
    assert 1000 < records < 3000
    assert all(data[i * 100 : i * 100 + 50] == bytes([1 + i % 255]) * 50 for i in range(records))


async def test_flush_all_and_stale_error() -> None:
    world = World()
    mount = world.mount()
    files = [await new_file(world, mount) for _ in range(5)]
    for file in files:
        await file.write(0, noise(CHUNK))
    world.service.before = lambda op, request: StaleReceipt() if request.ino == files[2].ino else None
    failures = await mount.flush_all(durable=True)
    assert [type(failure) for failure in failures] == [StaleReceipt]
    assert [file.needs_fsync for file in files] == [False, False, True, False, False]


async def test_files_are_forgotten_only_when_they_are_on_disk(monkeypatch, autojump_clock) -> None:
    monkeypatch.setattr("shoalfs.fs.data_path.FILES_KEPT_MAX", 3)
    world = World()
    async with world.running() as mount:
        files = [await new_file(world, mount) for _ in range(3)]
        for file in files:
            await file.write(0, noise(CHUNK))
            await file.flush(durable=False)
        gone = files[1]
        del world.service.files[gone.ino]  # removed meanwhile, and its chunks collected
        lost = files[2]  # committed, and then lost by its targets before they synced
        for held in world.servers.chunks.values():
            for chunk in [*gone._committer.undurable, *lost._committer.undurable]:
                held.pop(chunk, None)
        for _ in range(9):
            await new_file(world, mount)
        await trio.sleep(1)
        assert mount.find(files[0].ino) is None
        assert durable_copies(world, files[0].ino) == [2]
        assert mount.find(gone.ino) is None
        assert mount.find(lost.ino) is lost
        assert lost.needs_fsync


async def test_writers_readers_and_flushes_side_by_side(autojump_clock) -> None:
    """Eight tasks own interleaved stripes of one file and check what they wrote while others write, flush and fail."""
    world = World()
    chance = random.Random(3)
    world.servers.on_put = lambda target, chunk: PeerUnreachable() if chance.random() < 0.05 else None
    stripe, stripes = 10_000, 64
    model = bytearray(stripe * stripes)
    async with world.running(dirty_bytes=3 * CHUNK) as mount:
        file = await new_file(world, mount)
        await file.setattr(SetAttr(WHO, file.ino, size_bytes=len(model)))

        async def owner(number: int) -> None:
            mine = random.Random(number)
            for turn in range(40):
                start = mine.randrange(number, stripes, 8) * stripe
                at = start + mine.randrange(stripe)
                piece = mine.randbytes(mine.randrange(1, start + stripe - at + 1))
                await file.write(at, piece)
                model[at : at + len(piece)] = piece
                if turn % 10 == number:
                    await file.flush(durable=number % 2 == 0)
                read = await file.read(start, stripe)
                assert bytes(read) == model[start : start + stripe]

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(owner, number)
        world.servers.on_put = lambda target, chunk: None
        await file.flush(durable=True)
        assert world.service.read_back(file.ino) == model
        assert bytes(await file.read(0, len(model))) == model
        assert mount.dirty_bytes == 0
    assert mount.counters["puts_failed"] > 0
