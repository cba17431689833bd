"""Targets that come and go while their server runs: who is refused, what a crash in each gap leaves."""

import errno
import shutil
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest
import trio

from chunkserver_support import CLUSTER, hash_of
from shoalfs.chunkserver import heartbeat, server
from shoalfs.chunkserver.added import AddedTarget, AddedTargets
from shoalfs.chunkserver.client import ChunkClient
from shoalfs.chunkserver.directory import TargetDirectory
from shoalfs.chunkserver.disk import RealDisk
from shoalfs.chunkserver.keeper import TargetOptions
from shoalfs.chunkserver.memory_disk import MemoryDisk
from shoalfs.chunkserver.messages import ADD_TARGET, SERVER_STATUS, AddTarget, GetServerStatus
from shoalfs.chunkserver.target import open_target
from shoalfs.mds import messages as m
from shoalfs.transport.errors import NotAllowed, PosixError, ShoalError, TargetDown, TargetRemoved, UserError
from shoalfs.transport.limits import BEAT_MS_MIN
from shoalfs.transport.network import open_network
from shoalfs.transport.session import Hello
from unit.chunkserver.test_service import MIB, Cluster, FakeMds

OTHER_CLUSTER = b"another-cluster-"


class Registry(FakeMds):
    """Refuses the targets that were ``removed``, as the metadata service does."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: set[bytes] = set()

    async def _mutate(self, call, request, payload) -> m.Mutated:
        asked = msgspec.msgpack.decode(request.commands[0].body, type=m.RegisterTarget)
        if asked.uuid in self.removed:
            return m.Mutated(1, (m.Outcome(TargetRemoved.code, "was removed"),))
        return await super()._mutate(call, request, payload)

    async def _heartbeat(self, call, request, payload) -> m.HeartbeatReply:
        reply = await super()._heartbeat(call, request, payload)
        gone = {target.id for target in self.targets.values() if target.uuid in self.removed}
        orders = tuple(msgspec.structs.replace(o, known=o.known and o.target not in gone) for o in reply.orders)
        return m.HeartbeatReply(reply.map_epoch, orders)


class Growing(Cluster):
    """A server with one target in its configuration, which can be given more."""

    def __init__(self, tmp_path, nursery: trio.Nursery) -> None:
        super().__init__(tmp_path, nursery)
        self.mds = Registry()

    def options(self, **changes) -> server.ServerOptions:
        configured = super().options().targets[:1]
        return super().options(**{"targets": configured, "added_path": str(self.tmp_path / "added"), **changes})

    @property
    def written_down(self) -> list[str]:
        return [entry.path for entry in AddedTargets(RealDisk(), str(self.tmp_path / "added")).entries]

    async def ask(self, method, request, role: str = "admin"):
        async with open_network(self.carriers, Hello(cluster_id=CLUSTER, role=role, name="operator")) as network:
            try:
                return (await network.call("memory:cs", method, request, timeout_ms=20_000)).body
            except ShoalError as error:
                refusal = error
        raise refusal  # not through the network's nursery, which would wrap it

    async def add(self, path, size: int | None = 16 * MIB, role: str = "admin"):
        return await self.ask(ADD_TARGET, AddTarget(str(path), size), role)

    async def served(self) -> dict[str, str]:
        """The failure, or nothing, of each target by its path."""
        status = await self.ask(SERVER_STATUS, GetServerStatus())
        return {target.path: target.failed for target in status.targets}

    def directory(self, name: str):
        path = self.tmp_path / name
        path.mkdir()
        return path


@asynccontextmanager
async def growing(tmp_path, **changes):
    async with trio.open_nursery() as nursery:
        cluster = Growing(tmp_path, nursery)
        await cluster.start_mds()
        await cluster.start_server(**changes)
        await cluster.mds.wait_beats(1)
        async with open_network(cluster.carriers, Hello(cluster_id=CLUSTER, role="client", name="test")) as network:
            cluster.client = ChunkClient(network)
            yield cluster
        nursery.cancel_scope.cancel()


# --- adding ---------------------------------------------------------------------------------------------------------


async def test_a_directory_becomes_a_target_at_once_and_stays_one(tmp_path):
    async with growing(tmp_path) as cluster:
        path = cluster.directory("more")
        added = await cluster.add(path)
        assert added.target == 2
        assert cluster.mds.targets[added.uuid].capacity_bytes == 16 * MIB
        await cluster.put(2, 1, b"x" * 100_000, durable=True)
        assert {report.target for report in (await cluster.mds.wait_beats(2)).targets} == {1, 2}
        await cluster.stop_server()
        assert cluster.written_down == [str(path)]
        await cluster.start_server()
        await cluster.mds.wait_beats(1)
        assert await cluster.get(2, 1, b"x" * 100_000) == b"x" * 100_000
        assert cluster.mds.targets[added.uuid].epoch == 2, "the same target"


async def test_who_moves_an_entry_into_the_configuration_has_it_once(tmp_path):
    async with growing(tmp_path) as cluster:
        path = cluster.directory("more")
        await cluster.add(path)
        await cluster.stop_server()
        configured = (*cluster.options().targets, TargetOptions(str(path)))
        await cluster.start_server(targets=configured)
        assert len(await cluster.served()) == 2


async def refused(cluster: Growing, path, error: type[Exception] = PosixError, **more) -> str:
    before = await cluster.served()
    with pytest.raises(error) as caught:
        await cluster.add(path, **more)
    assert "\n" not in str(caught.value)
    assert await cluster.served() == before
    assert cluster.written_down == []
    return str(caught.value)


async def test_what_cannot_be_a_target_is_refused_in_one_line(tmp_path):
    async with growing(tmp_path) as cluster:
        assert "no such directory" in await refused(cluster, tmp_path / "absent")
        assert not (tmp_path / "absent").exists()
        (tmp_path / "file").touch()
        assert "is no directory" in await refused(cluster, tmp_path / "file")
        assert "absolute" in await refused(cluster, "more")
        assert "absolute" in await refused(cluster, "/" + "x" * 2000)
        full = cluster.directory("full")
        (full / "precious").touch()
        assert "not empty" in await refused(cluster, full)
        assert [path.name for path in full.iterdir()] == ["precious"]
        assert "is target 1 of this chunkserver already" in await refused(cluster, tmp_path / "a")
        (tmp_path / "link").symlink_to(tmp_path / "a")
        assert "already" in await refused(cluster, tmp_path / "link")
        (tmp_path / "a" / "inside").mkdir()
        assert "within" in await refused(cluster, tmp_path / "a" / "inside")
        assert "within" in await refused(cluster, tmp_path)
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        assert "is a copy of the target" in await refused(cluster, tmp_path / "copy")
        await refused(cluster, cluster.directory("client"), NotAllowed, role="client")


async def test_a_target_of_another_cluster_is_refused(tmp_path):
    async with growing(tmp_path) as cluster:
        TargetDirectory(RealDisk(), str(tmp_path / "theirs"), cluster_id=OTHER_CLUSTER, fresh_uuid=b"u" * 16).close()
        assert "belongs to cluster" in await refused(cluster, tmp_path / "theirs")


async def test_nothing_is_added_where_it_cannot_be_written_down(tmp_path):
    async with growing(tmp_path, added_path=None) as cluster:
        assert "configuration file" in await refused(cluster, cluster.directory("more"))
    (tmp_path / "two").mkdir()
    async with growing(tmp_path / "two", added_path=str(tmp_path / "two" / "added")) as cluster:
        (tmp_path / "two" / "added.new").mkdir()  # whatever happens there: here it is no file
        await refused(cluster, cluster.directory("more"))
        (tmp_path / "two" / "added.new").rmdir()
        assert (await cluster.add(tmp_path / "two" / "more")).target == 2, "it was let go of, and can be added"


async def test_a_file_of_added_targets_that_is_none_stops_the_start(tmp_path):
    (tmp_path / "added").write_text("[]")
    with pytest.raises(UserError) as caught:
        AddedTargets(RealDisk(), str(tmp_path / "added"))
    assert "put it right" in str(caught.value)


async def test_an_added_disk_that_is_not_mounted_is_left_out_and_nothing_is_made_in_its_place(tmp_path):
    async with growing(tmp_path) as cluster:
        path = cluster.directory("more")
        await cluster.add(path)
        await cluster.stop_server()
        path.rename(tmp_path / "elsewhere")
        path.mkdir()
        await cluster.start_server()
        assert "is its disk mounted" in (await cluster.served())[str(path)]
        assert not any(path.iterdir())
        await cluster.stop_server()
        path.rmdir()
        (tmp_path / "elsewhere").rename(path)
        await cluster.start_server()
        assert (await cluster.served())[str(path)] == ""


# --- removing -------------------------------------------------------------------------------------------------------


async def wait_for(condition) -> None:
    with trio.fail_after(10):
        while not await condition():
            await trio.sleep(0.01)


async def test_a_target_that_the_cluster_removed_is_let_go_of_while_others_serve_on(tmp_path):
    async with growing(tmp_path) as cluster:
        path = cluster.directory("more")
        added = await cluster.add(path)
        await cluster.put(1, 7, b"y" * 5000)
        cluster.mds.removed.add(added.uuid)

        async def is_gone() -> bool:
            return str(path) not in await cluster.served() and not cluster.written_down

        await wait_for(is_gone)
        with pytest.raises(TargetDown):
            await cluster.put(2, 8, b"z" * 5000)
        assert await cluster.get(1, 7, b"y" * 5000) == b"y" * 5000
        assert {report.target for report in (await cluster.mds.wait_beats(1)).targets} == {1}
        assert "was removed" in await refused(cluster, path, TargetRemoved)
        shutil.rmtree(path)
        path.mkdir()
        assert (await cluster.add(path)).target == 3, "an empty directory is another target"


async def test_a_configured_target_that_was_removed_is_shown_and_does_not_come_back(tmp_path):
    async with growing(tmp_path) as cluster:
        await cluster.add(cluster.directory("more"))
        cluster.mds.removed.add(cluster.mds.target(1).uuid)
        for _ in range(2):

            async def is_shown() -> bool:
                return "take it out of the configuration" in (await cluster.served()).get(str(tmp_path / "a"), "")

            await wait_for(is_shown)
            await cluster.stop_server()
            await cluster.start_server()
        await cluster.mds.wait_beats(1)
        await cluster.put(2, 1, b"x")


async def test_a_directory_that_vanishes_costs_its_target_and_no_other(tmp_path):
    async with growing(tmp_path) as cluster:
        path = cluster.directory("more")
        await cluster.add(path)
        shutil.rmtree(path)

        async def is_failed() -> bool:
            return "does not answer" in (await cluster.served())[str(path)]

        await wait_for(is_failed)
        await cluster.put(1, 7, b"y" * 5000, durable=True)
        reports = {report.target: report.failed for report in (await cluster.mds.wait_beats(2)).targets}
        assert (reports[1], "does not answer" in reports[2]) == ("", True)
        cluster.mds.removed.add(next(uuid for uuid, target in cluster.mds.targets.items() if target.id == 2))

        async def is_gone() -> bool:
            return str(path) not in await cluster.served() and not cluster.written_down

        await wait_for(is_gone)


async def test_who_waits_for_a_target_that_is_stopped_is_told_and_who_is_cancelled_is_not(rig):
    rig.disk.kill()
    async with open_target(rig.open) as target, trio.open_nursery() as nursery:
        target.enrol(1, 1)
        told = []

        async def store(size: int) -> None:
            data = b"x" * size
            try:
                await target.put(chunk=size, ino=1, offset_bytes=0, data=[data], chunk_hash=hash_of(data), durable=True)
            except TargetDown:
                told.append(size)

        for size in (10, 20, 2 * MIB // 10):
            nursery.start_soon(store, size)
        await trio.lowlevel.checkpoint()
        await target.stop()
        with trio.fail_after(10):
            await store(30)
            while len(told) < 4:
                await trio.sleep(0.01)
        with trio.CancelScope() as scope:
            scope.cancel()
            await target.usage()
        assert scope.cancelled_caught


# --- crashes --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What the process gets instead of its next system call."""


class DyingDisk(RealDisk):
    """Ends its process at the call after ``left`` more that change anything. None: it lives. Then nothing is carried
    out any more, and what the system does for a dead process is done: its descriptors are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.is_dead = False

    def _change(self) -> None:
        if self.left is not None:
            self.left -= 1
            self.is_dead = self.is_dead or self.left < 0
        if self.is_dead:
            raise Killed


def _dying(name: str):
    def call(self: DyingDisk, *arguments, **more):
        self._change()
        return getattr(RealDisk, name)(self, *arguments, **more)

    return call


for _name in ("make_dirs", "pwritev", "truncate", "fdatasync", "sync_dir", "rename", "unlink", "punch_hole"):
    setattr(DyingDisk, _name, _dying(_name))


async def life(cluster: Growing, monkeypatch, left: int | None, work) -> bool:
    """The server runs while ``work`` is done, and is killed after ``left`` changes from its beginning. Returns whether
    it was not."""
    disk = DyingDisk()
    monkeypatch.setattr(server, "RealDisk", lambda: disk)
    died = trio.Event()

    async def run(*, task_status) -> None:
        scope = cluster.server_scope = trio.CancelScope()
        cluster.server_done = trio.Event()
        try:
            with scope:
                await server.run(cluster.options(), cluster.carriers, task_status=task_status)
        except* Killed:
            died.set()
        cluster.server_done.set()

    await cluster.nursery.start(run)
    await cluster.mds.wait_beats(1)
    disk.left = left

    async def whatever() -> None:
        try:
            await work()
        except ShoalError:  # of a server that dies; which is then waited for
            if left is None:
                raise
        else:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(whatever)
        await died.wait()
        nursery.cancel_scope.cancel()
    disk.left = None
    if not died.is_set():
        await cluster.stop_server()
    return not disk.is_dead


async def add_and_crash(cluster: Growing, monkeypatch, left: int, outcomes: set[tuple[bool, bool]]) -> bool:
    """Crash while a directory is added; then it is there, or can be added. Returns whether it was added before."""
    path = cluster.directory(f"more{left}")
    answered = []

    async def add() -> None:
        answered.append(await cluster.add(path))

    async def look() -> None:
        found = str(path) in await cluster.served()
        assert found or not answered, "what was answered for is there"
        outcomes.add((bool(answered), found))
        if not found:
            await cluster.add(path)
        assert str(path) in await cluster.served()

    lived = await life(cluster, monkeypatch, left, add)
    before = set(cluster.mds.targets)
    assert await life(cluster, monkeypatch, None, look)
    assert len(set(cluster.mds.targets) - before) <= 1
    assert cluster.written_down == [str(path)]
    shutil.rmtree(path)
    (cluster.tmp_path / "added").unlink()
    return lived


async def test_a_crash_at_any_step_of_adding_leaves_a_target_or_a_directory_that_can_be_added(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_MS", BEAT_MS_MIN)
    async with trio.open_nursery() as nursery:
        cluster = Growing(tmp_path, nursery)
        await cluster.start_mds()
        outcomes: set[tuple[bool, bool]] = set()
        left = 0
        while not await add_and_crash(cluster, monkeypatch, left, outcomes):
            left += 1
        assert left > 10
        assert outcomes == {(False, False), (False, True), (True, True)}
        nursery.cancel_scope.cancel()


async def let_go_and_crash(cluster: Growing, monkeypatch, left: int) -> bool:
    """Crash while a target is let go of; then it is gone in the end. Returns whether it was gone before."""
    path = cluster.directory(f"more{left}")

    async def is_gone() -> bool:
        return str(path) not in await cluster.served() and not cluster.written_down

    async def add() -> None:
        await cluster.add(path)

    async def remove() -> None:
        (entry,) = AddedTargets(RealDisk(), str(cluster.tmp_path / "added")).entries
        cluster.mds.removed.add(bytes.fromhex(entry.uuid))
        await wait_for(is_gone)

    async def look() -> None:
        await wait_for(is_gone)

    assert await life(cluster, monkeypatch, None, add)
    lived = await life(cluster, monkeypatch, left, remove)
    assert await life(cluster, monkeypatch, None, look)
    assert cluster.written_down == []
    return lived


async def test_a_crash_at_any_step_of_letting_go_ends_with_a_target_that_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_MS", BEAT_MS_MIN)
    async with trio.open_nursery() as nursery:
        cluster = Growing(tmp_path, nursery)
        await cluster.start_mds()
        left = 0
        while not await let_go_and_crash(cluster, monkeypatch, left):
            left += 1
        assert left > 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("step", ["open", "truncate", "pwritev", "fdatasync", "rename", "sync_dir", ""])
def test_a_power_cut_leaves_the_old_file_or_the_new_one(step: str, seed: int):
    entries = tuple(AddedTarget(f"/t{number}", f"{number:032x}") for number in range(2))
    disk = MemoryDisk()
    disk.make_dirs("/etc")
    disk.sync_dir("/")
    AddedTargets(disk, "/etc/added").put(entries[0])
    if step:
        disk.fail(step, errno.EIO, skip=step == "open")  # of the two, the first reads
    try:
        AddedTargets(disk, "/etc/added").put(entries[1])
    except OSError:
        assert step
    disk.power_cut(Random(seed))
    left = AddedTargets(disk, "/etc/added").entries
    assert left == entries if not step else left in (entries, entries[:1])
