"""A small world for write leases: programs on three mounts write and read the same bytes of the same files, in virtual
time, while lines are cut and reset, mounts stand still or are gone, sessions are evicted, and leaders change or crash.
One seed, one history.

What is real: all of a mount from :class:`~shoalfs.fs.vfs.Vfs` down to its session, and the metadata service with its
leases. What is not: Raft (see lease_group.py), disks, the kernel (see file_kernel.py), and chunkservers, which are a
dictionary that never fails.

What is checked (see file_histories.py): registers, and a log. Beside that, what only somebody who sees all can say, at
the moment when it happens:

* what a write that belongs to an ended session wrote is never committed;
* no value that was written over comes back;
* what was written before a close or fsync that succeeded is committed.
"""

import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio

from harness.metadata import command
from shoalfs.mds import extents, inline, reads
from shoalfs.mds import messages as m
from shoalfs.mds.cluster import load_map
from shoalfs.mds.entry import encode_entry
from shoalfs.mds.machine import Layout
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import ROOT_INODE, InodeId, SessionId
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX, GRACE_QUESTION_TTLS
from sim.broken import Broken
from sim.file_histories import FileCall, Histories, Register, check_log, check_registers
from sim.file_mount import FIRST, LOG, PLACES, VALUE_BYTES, FileMount, Program, Running
from sim.lease_group import NODES, TTL_MS, Group, end_after, run_history, serve_node
from sim.lease_network import SimFabric
from unit.fs.world import Servers

TTL_S = TTL_MS / 1000
MOUNTS = 3
LAYOUT = Layout(chunk_bytes=1 << 20, inline_bytes_max=1_000)
QUIET_S = 2 * TTL_S
CAUSES = ("reset", "cut", "stop", "kill", "evict", "leader", "crash")


class FileWorld:
    def __init__(self, seed: int, calm_s: float) -> None:
        self.chance = random.Random(seed)
        self.fabric = SimFabric()
        self.group = Group(self.chance, self._note_truth, LAYOUT)
        self.counts: Counter[str] = Counter()
        self.files: dict[str, InodeId] = {}
        self.ready: list[trio.Nursery] = []  # of mounts that wait for the files
        self.histories = Histories()
        self.mounts: list[FileMount] = []
        self.calm_s = calm_s  # between two faults, on the average, of each of two who make them
        self.is_quiet = False  # programs do nothing any more
        self._written = 0
        self._write_of: dict[tuple[Register, bytes], FileCall] = {}
        self._now_at: dict[Register, bytes] = {}
        self._sessions: set[SessionId] = set()
        self._ended_at: dict[SessionId, float] = {}
        self._nodes: dict[int, trio.CancelScope] = {}
        self._add_targets()
        with self.group.store.read() as txn:
            self.servers = Servers(load_map(txn))

    def _add_targets(self) -> None:
        for number in (1, 2):
            request = m.RegisterTarget(bytes([number]) * 16, f"node{number}", f"memory:c{number}", 1 << 40)
            self.group.apply(encode_entry(1, [(0, command(request, seq=0))]))

    # --- what programs do --------------------------------------------------------------------------------------------

    def program(self, mount: FileMount) -> Running:
        return Program(mount)

    def new_value(self, mount: FileMount) -> bytes:
        self._written += 1
        return b"%d-%06d" % (mount.number + 1, self._written)

    def begin(self, mount: FileMount, register: Register, *, is_write: bool) -> FileCall:
        value = self.new_value(mount) if is_write else b""
        call = FileCall(mount.number, mount.session.session, register, trio.current_time(), is_write, value)
        self.histories.calls.append(call)
        if is_write:
            self._write_of[register, value] = call
        return call

    def excuse(self, why: str, session: SessionId, ino: InodeId | None = None) -> None:
        """What the session has written (to one file) and is not committed may be committed late, or be lost."""
        for call in self._write_of.values():
            open_ = call.session == session and call.committed == math.inf and not call.excused
            if open_ and ino in (None, self.files[call.register[0]]):
                call.excused = why

    def check_committed(self, mount: FileMount, name: str, began: float) -> None:
        """A close or fsync that began then has succeeded."""
        for offset in PLACES.get(name, ()):
            own = [c for c in self._write_of.values() if c.register == (name, offset) and c.mount == mount.number]
            last = max((c for c in own if c.ended < began), key=lambda c: c.ended, default=None)
            if last is None or any(c.ended > last.began for c in own if c is not last):
                continue  # another one of this mount may have lain over it
            self.counts["commits checked"] += 1
            if last.committed == math.inf and last.session == mount.session.session:
                raise Broken(
                    f"mount {mount.number}, {name}: closed or synced from {began:.4f}: {last} is not committed"
                )

    # --- what is true ------------------------------------------------------------------------------------------------

    def _note_truth(self) -> None:
        """An entry was applied: what has it changed?"""
        now = trio.current_time() if self.mounts else 0.0
        with self.group.store.read() as txn:
            sessions = {session for session, _ in reads.sessions(txn)}
            for session in self._sessions - sessions:
                self.excuse("session ended", session)
                self._ended_at[session] = now
            contents = {name: self._content(txn, ino) for name, ino in self.files.items() if name in PLACES}
        for name, content in contents.items():
            for offset in PLACES[name]:
                self._note((name, offset), content[offset : offset + VALUE_BYTES], now)
        self._sessions = sessions

    def _note(self, register: Register, value: bytes, now: float) -> None:
        if self._now_at.get(register, FIRST) == value:
            return
        self._now_at[register] = value
        call = self._write_of.get((register, value))
        if call is None:
            raise Broken(f"{register} became {value!r}, which nobody wrote")
        if call.committed < math.inf:
            raise Broken(f"{register}: {value!r}, committed at {call.committed:.4f}, came back at {now:.4f}")
        if call.ended < self._ended_at.get(call.session, math.inf) < now:
            raise Broken(f"{register}: {value!r} was committed at {now:.4f}: session {call.session} had ended")
        call.committed = now

    def _content(self, txn: Any, ino: InodeId) -> bytes:
        inode = reads.getattr_(txn, m.GetAttr(ino)).inode
        content = bytearray(inline.load(txn, ino).ljust(inode.size_bytes, b"\0"))
        for extent in extents.visible(txn, inode, 0, FILE_SIZE_BYTES_MAX):
            chunk = next(held[extent.chunk] for held in self.servers.chunks.values() if extent.chunk in held)
            start = extent.chunk_offset_bytes
            content[extent.offset_bytes : extent.end_bytes] = chunk[start : start + extent.length_bytes]
        return bytes(content)

    # --- a history ---------------------------------------------------------------------------------------------------

    async def run(self, seconds: float, kinds: Sequence[str]) -> None:
        async with trio.open_nursery() as nursery:
            for node in NODES:
                await self._start_node(nursery, node)
            self._elect(nursery, NODES[0])
            nursery.start_soon(self._keep_targets_up)
            self.mounts = [FileMount(self, number) for number in range(MOUNTS)]
            for mount in self.mounts:
                await nursery.start(mount.run)
            await self._make_files(self.mounts[0])
            for mount, waiting in zip(self.mounts, self.ready, strict=True):
                mount.start_programs(waiting)
            async with trio.open_nursery() as trouble:
                trouble.start_soon(end_after, seconds, trouble.cancel_scope)
                if kinds:
                    for _ in range(2):
                        trouble.start_soon(self._break_things, nursery, kinds)
            self.is_quiet = True
            await self._heal(nursery)
            await trio.sleep(QUIET_S)
            await self._read_all()
            for mount in self.mounts:
                mount.kill()
            nursery.cancel_scope.cancel()
        self.check()

    def check(self) -> None:
        self.counts["checked"] = check_registers(self.histories.calls, FIRST)
        self.counts["records"] = check_log(self.histories.log, VALUE_BYTES)
        self.counts |= Counter(f"excused: {c.excused}" for c in self.histories.calls if c.excused)
        self.counts["late"] = sum(c.committed > c.ended for c in self.histories.calls if c.is_write)

    async def _make_files(self, mount: FileMount) -> None:
        made = {}
        for name in (*PLACES, LOG):
            inode, number, _ = await mount.vfs.create(ROOT, ROOT_INODE, name.encode(), 0o644, os.O_RDWR)
            for offset in PLACES.get(name, ()):
                await mount.vfs.write(number, offset, FIRST)
            await mount.close(number)
            made[name] = inode.ino
        self.files.update(made)

    async def _keep_targets_up(self) -> None:
        """In the place of heartbeats."""
        while True:
            for state in self.group.states.values():
                for number in self.servers.chunks:
                    state.targets.report(m.TargetReport(number, 1, 1 << 40, 0, 0), int(trio.current_time() * 1000))
            await trio.sleep(1.0)

    async def _start_node(self, nursery: trio.Nursery, node: int) -> None:
        async def run(*, task_status: "trio.TaskStatus[None]") -> None:
            with trio.CancelScope() as self._nodes[node]:
                await serve_node(self.group, self.fabric, node, task_status=task_status)

        await nursery.start(run)

    def _elect(self, nursery: trio.Nursery, node: int) -> None:
        self.group.elect(node)
        nursery.start_soon(self._note_late_reports, self.group.term)

    async def _note_late_reports(self, term: int) -> None:
        """Whoever has not reported to the leader of ``term`` after a quarter of a TTL is not waited for by questions:
        what it has written, or writes before it reports, they need not see."""
        await trio.sleep(GRACE_QUESTION_TTLS * TTL_S - 0.01)
        while self.group.term == term and self.group.leader:
            table = self.group.states[self.group.leader].sessions
            late = [session for session in self._sessions if not table.has_reported(session)]
            for session in late:
                self.excuse("did not report", session)
            if not late:
                return
            await trio.sleep(0.02)

    async def _read_all(self) -> None:
        """At the end all mounts agree."""
        for mount in self.mounts:
            reader = Program(mount)
            for name, offsets in PLACES.items():
                for offset in offsets:
                    with suppress(ShoalError):
                        await reader._use(name, offset, is_write=False)
            await reader._read_log()

    async def _heal(self, nursery: trio.Nursery) -> None:
        """The metadata service first: a mount that starts waits for it."""
        if not self.group.leader:
            self._elect(nursery, self.chance.choice(NODES))
        for node, scope in list(self._nodes.items()):
            if scope.cancelled_caught:
                await self._start_node(nursery, node)
        for number, mount in enumerate(self.mounts):
            if mount.scope.cancel_called:
                self.mounts[number] = FileMount(self, number)
                await nursery.start(self.mounts[number].run)
            while mount.kernel.stopped:
                mount.go_on()
            while mount.line.cuts:
                mount.line.heal()

    # --- faults ------------------------------------------------------------------------------------------------------

    async def _break_things(self, nursery: trio.Nursery, kinds: Sequence[str]) -> None:
        chance = random.Random(self.chance.random())
        while True:
            await trio.sleep(chance.expovariate(1 / self.calm_s))
            kind, number = chance.choice(list(kinds)), chance.randrange(MOUNTS)
            mount = self.mounts[number]
            long_s = chance.choice((0.05, 0.3, 0.5 * TTL_S, 1.5 * TTL_S, 2.5 * TTL_S))
            self.counts[kind] += 1
            await mount.hinder(kind, long_s)
            await self._break_more(chance, kind)
            if kind == "kill":
                mount.kill()
                await trio.sleep(min(long_s, TTL_S))
                if self.mounts[number] is mount:
                    self.mounts[number] = FileMount(self, number)
                    await nursery.start(self.mounts[number].run)
            elif kind == "evict":
                nursery.start_soon(self._evict, mount.session.session)
            elif kind in ("leader", "crash") and self.group.leader:
                await self._change_leader(nursery, chance, crash=kind == "crash")

    async def _break_more(self, chance: random.Random, kind: str) -> None:
        """What else may happen in worlds like this."""

    async def _evict(self, session: SessionId) -> None:
        """`shoal session evict`"""
        if self.group.leader:
            with suppress(ShoalError):
                # The handler asks nothing of the call: who may evict was checked before it.
                await self.group.services[self.group.leader]._evict(None, m.EvictSession(session), memoryview(b""))

    async def _change_leader(self, nursery: trio.Nursery, chance: random.Random, *, crash: bool) -> None:
        node = self.group.leader
        self.group.depose()
        if crash:
            self._nodes[node].cancel()
        await trio.sleep(chance.choice((0.0, 0.1, 1.0)))
        if not self.group.leader:
            self._elect(nursery, next(n for n in NODES if n != node) if crash else chance.choice(NODES))
        if crash:
            await trio.sleep(chance.choice((0.1, 1.0)))
            await self._start_node(nursery, node)


def simulate_files(seed: int, seconds: float, kinds: Sequence[str], *, calm_s: float = 3.0) -> FileWorld:
    """Run one history. Raises Broken."""
    made: list[FileWorld] = []

    async def main() -> None:
        made.append(FileWorld(seed, calm_s))
        await made[0].run(seconds, kinds)

    run_history(seed, main)
    return made[0]
