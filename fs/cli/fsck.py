"""`shoal fsck`: check the namespace, that every extent has its chunks, and that every chunk has its file.

This module asks; what the answers mean is decided in :mod:`shoalfs.fs.fsck`. It holds one page of the
namespace and one page of a target's chunks at a time.
"""

import errno
import os
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, progress
from shoalfs.transport.errors import PosixError, ShoalError, UserError
from shoalfs.transport.limits import (
    CHUNK_LIST_MAX,
    GARBAGE_GRACE_MS_DEFAULT,
    INSPECTION_LEASE_MS,
    REQUEST_TIMEOUT_MS_MAX,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from shoalfs.chunkserver.messages import VerifiedChunk
    from shoalfs.fs.fsck import Finding, Replica
    from shoalfs.mds.messages import ClusterMap, NamespaceChecked, Target
    from shoalfs.transport.ids import ChunkId, InodeId, TargetId
    from shoalfs.transport.method import Method

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)
R = TypeVar("R")

FINDINGS_MAX: Final = 10_000  # kept and shown; further ones are only counted
ATTEMPT_MS: Final = 60_000  # a page comes after a second; a directory of millions of entries is one step
_TIMES_MAX: Final = 3
_DEEP_CHUNKS: Final = 32  # per request when all bytes are read: 2 GiB at the largest chunks, within the time limit


@dataclass
class Report:
    """What was checked, and what was found."""

    inodes: int = 0
    extents: int = 0
    replicas: int = 0
    chunks_listed: int = 0
    young_unknown_chunks: int = 0
    findings: "list[Finding]" = field(default_factory=list)
    findings_left_out: int = 0

    def add(self, findings: "Sequence[Finding]") -> None:
        room = FINDINGS_MAX - len(self.findings)
        self.findings += findings[:room]
        self.findings_left_out += max(0, len(findings) - room)

    def as_json(self) -> dict[str, Any]:
        return {
            "clean": not self.findings,
            "inodes": self.inodes,
            "extents": self.extents,
            "replicas": self.replicas,
            "chunks_listed": self.chunks_listed,
            "young_unknown_chunks": self.young_unknown_chunks,
            "findings": [found.as_json() for found in self.findings],
            "findings_left_out": self.findings_left_out,
        }


app = typer.Typer(help="Check the filesystem, and repair it.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def fsck(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="Read all data and compare every hash.")] = False,
    grace_s: Annotated[
        int, typer.Option("--grace", min=0, metavar="S", help="How old an unknown chunk may be.")
    ] = GARBAGE_GRACE_MS_DEFAULT // 1000,
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Check the filesystem while it is in use. Exit code 0 if it is clean, 1 if anything was found."""
    if context.invoked_subcommand is not None:
        return
    report = call(locate(mds, config, state), partial(check, deep=deep, grace_ms=grace_s * 1000))
    if as_json or output is Format.JSON:
        print_json(report.as_json())
    else:
        for found in report.findings:
            typer.echo(found.line())
        typer.echo(_summary(report))
    if report.findings:
        raise typer.Exit(1)


async def check(operator: Operator, *, deep: bool, grace_ms: int) -> Report:
    """Check everything. Raises ShoalError if the metadata service cannot be asked, UserError if it does not get on with
    it."""
    return await anew(partial(_check, operator, deep=deep, grace_ms=grace_ms))


async def anew(read: "Callable[[], Awaitable[R]]") -> R:
    """What ``read`` returns. From the beginning again if what it reads is gone because another node of the metadata
    service leads by now (ESTALE), but not for ever: UserError."""
    for _ in range(_TIMES_MAX):
        try:
            return await read()
        except PosixError as error:
            if error.errno != errno.ESTALE:
                raise
    raise UserError(f"the metadata service had {_TIMES_MAX} leaders during one check: see `shoal status`, check again")


async def _check(operator: Operator, *, deep: bool, grace_ms: int) -> Report:
    from shoalfs.fs.fsck import with_paths
    from shoalfs.mds.messages import GET_MAP, STATUS, GetMap, GetStatus

    report = Report()
    with progress() as shown:
        inodes = (await operator.leader.call(STATUS, GetStatus())).body.inodes
        map_ = (await operator.leader.call(GET_MAP, GetMap())).body
        files = shown.add_task("inodes", total=inodes)
        targets = _Targets(operator, map_, report)
        number = await open_check(operator)
        async with _kept(operator, number):
            async for page in read_check(operator, number):
                await _check_page(operator, targets, page, report, deep=deep)
                for ino, offset_bytes in page.unlisted:
                    async for more in _extents(operator, ino, offset_bytes):
                        await _check_page(operator, targets, more, report, deep=deep)
                shown.update(files, completed=report.inodes, total=max(inodes, report.inodes))
        stored = shown.add_task("targets", total=len(map_.targets))
        for target in map_.targets:
            await _check_target(operator, targets, target, report, grace_ms)
            shown.advance(stored)
    wanted = {found.ino for found in report.findings if found.ino}
    if wanted:
        report.findings = with_paths(report.findings, await _find_paths(operator, wanted))
    return report


class _Targets:
    """The chunkservers' targets. One that does not answer is reported once and not asked again."""

    def __init__(self, operator: Operator, map_: "ClusterMap", report: Report) -> None:
        from shoalfs.fs.fsck import fragmented, holders, leaving

        self.groups = holders(map_)
        self.leaving = leaving(map_)
        self.fragmented = fragmented(map_)
        self._network = operator.network
        self._by_id = {target.id: target for target in map_.targets}
        self._lost: set[TargetId] = set()
        self._report = report

    async def ask(self, target: "TargetId", method: "Method[Q, A]", request: Q) -> A | None:
        """The reply, or None if the target does not answer."""
        from shoalfs.fs.fsck import unreachable
        from shoalfs.transport.errors import ShoalError

        if target in self._lost:
            return None
        address = self._by_id[target].address
        try:
            return (await self._network.call(address, method, request, timeout_ms=REQUEST_TIMEOUT_MS_MAX)).body
        except ShoalError as error:
            if target not in self._lost:
                self._lost.add(target)
                self._report.add([unreachable(self._by_id[target], str(error))])
            return None


async def open_check(operator: Operator) -> int:
    """Have the metadata service check the namespace as it is now; the number of what :func:`read_check` reads."""
    from shoalfs.mds.messages import OPEN_CHECK, OpenCheck

    return (await operator.leader.call(OPEN_CHECK, OpenCheck(), ATTEMPT_MS)).body.number


async def read_check(operator: Operator, number: int) -> "AsyncIterator[NamespaceChecked]":
    """Its pages, worked out when they are wanted. Raises ESTALE if the check is gone, because another node leads by now
    or because nothing was asked for INSPECTION_LEASE_MS."""
    from shoalfs.mds.messages import READ_CHECK, ReadInspection

    for at in count(1):
        page = (await operator.leader.call(READ_CHECK, ReadInspection(number, at), ATTEMPT_MS)).body
        yield page
        if page.done:
            return


@asynccontextmanager
async def _kept(operator: Operator, number: int) -> "AsyncIterator[None]":
    """Within the block the check is kept, however long the chunks of a page take."""
    import trio

    from shoalfs.mds.messages import READ_CHECK, ReadInspection

    async def keep() -> None:
        while True:
            await trio.sleep(INSPECTION_LEASE_MS / 4000)
            with suppress(ShoalError):  # whoever reads hears of it
                await operator.leader.call(READ_CHECK, ReadInspection(number, 0))

    failure: ShoalError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        try:
            yield
        except ShoalError as error:  # as itself, not in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _extents(operator: Operator, ino: "InodeId", offset_bytes: int) -> "AsyncIterator[NamespaceChecked]":
    """The extents of one large file from an offset on, as pages. A file that is removed meanwhile has none."""
    from shoalfs.mds.messages import GET_EXTENTS, GetExtents, NamespaceChecked
    from shoalfs.transport.errors import PosixError
    from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

    while True:
        try:
            found = (await operator.leader.call(GET_EXTENTS, GetExtents(ino, offset_bytes, FILE_SIZE_BYTES_MAX))).body
        except PosixError:
            return
        yield NamespaceChecked(False, 0, (), tuple((ino, extent) for extent in found.extents))
        if found.eof:
            return
        offset_bytes = found.extents[-1].end_bytes


async def _check_page(
    operator: Operator, targets: _Targets, page: "NamespaceChecked", report: Report, *, deep: bool
) -> None:
    """One page of inodes: the namespace's findings, and every replica of every chunk they name."""
    import trio

    from shoalfs.fs import fsck as judging
    from shoalfs.mds.messages import ChunkClass

    expected, conflicts = judging.expected_chunks(page.extents)
    by_target, homeless = judging.replicas(expected, targets.groups)
    report.add([*judging.of_namespace(page.findings), *conflicts, *homeless])
    answers: dict[Replica, VerifiedChunk] = {}
    async with trio.open_nursery() as nursery:
        for target, chunks in by_target.items():
            nursery.start_soon(partial(_verify, targets, target, chunks, answers, deep=deep))
    suspects = judging.suspects(expected, answers, targets.fragmented)
    classes = await _classify(operator, suspects)
    linked = [chunk for chunk, known in zip(suspects, classes, strict=True) if known == ChunkClass.LINKED]
    report.add(judging.judge(expected, targets.groups, answers, linked, targets.leaving, targets.fragmented))
    report.inodes += page.inodes
    report.extents += len(page.extents)
    report.replicas += len(answers)


async def _verify(
    targets: _Targets,
    target: "TargetId",
    chunks: "Sequence[ChunkId]",
    answers: "dict[Replica, VerifiedChunk]",
    *,
    deep: bool,
) -> None:
    from shoalfs.chunkserver.messages import VERIFY, VerifyChunks
    from shoalfs.fs.fsck import Replica

    for batch in _batches(chunks, _DEEP_CHUNKS if deep else CHUNK_LIST_MAX):
        reply = await targets.ask(target, VERIFY, VerifyChunks(target, tuple(batch), deep))
        if reply is None:
            return
        for chunk, answer in zip(batch, reply.chunks, strict=True):
            answers[Replica(target, chunk)] = answer


async def _check_target(operator: Operator, targets: _Targets, target: "Target", report: Report, grace_ms: int) -> None:
    """Every chunk on one target: is it known?"""
    from shoalfs.chunkserver.messages import LIST, ListChunks
    from shoalfs.fs.fsck import unknown_chunks
    from shoalfs.mds.messages import TargetState
    from shoalfs.transport.ids import ChunkId

    after, eof = ChunkId(0), target.state is TargetState.OUT
    while not eof:
        page = await targets.ask(target.id, LIST, ListChunks(target.id, after, CHUNK_LIST_MAX))
        if page is None or not page.chunks:
            return
        classes = await _classify(operator, [chunk.chunk for chunk in page.chunks])
        findings, young = unknown_chunks(target.id, page.chunks, classes, now_ns=time.time_ns(), grace_ms=grace_ms)
        report.add(findings)
        report.young_unknown_chunks += young
        report.chunks_listed += len(page.chunks)
        after, eof = page.chunks[-1].chunk, page.eof


async def _classify(operator: Operator, chunks: "Sequence[ChunkId]") -> list[int]:
    """What the metadata know of ``chunks``, in their order."""
    from shoalfs.mds.messages import CLASSIFY_CHUNKS, ClassifyChunks

    classes: list[int] = []
    for batch in _batches(chunks, CHUNK_LIST_MAX):
        classes += (await operator.leader.call(CLASSIFY_CHUNKS, ClassifyChunks(tuple(batch)))).body.classes
    return classes


async def _find_paths(operator: Operator, wanted: "set[InodeId]") -> "dict[InodeId, str]":
    """Paths of the inodes in ``wanted``, of those that have one."""
    from shoalfs.mds.messages import FIND_PATHS, READ_PATHS, FindPaths, ReadInspection
    from shoalfs.transport.limits import PATHS_MAX

    inos = sorted(ino for ino in wanted if 0 < ino < 1 << 64)  # a damaged row may name anything
    found: dict[InodeId, str] = {}
    for start in range(0, len(inos), PATHS_MAX):
        request = FindPaths(tuple(inos[start : start + PATHS_MAX]))
        number = (await operator.leader.call(FIND_PATHS, request, ATTEMPT_MS)).body.number
        for at in count(1):
            page = (await operator.leader.call(READ_PATHS, ReadInspection(number, at), ATTEMPT_MS)).body
            found |= {ino: os.fsdecode(path) for ino, path in page.paths}
            if page.done:
                break
    return found


def _batches(chunks: "Sequence[ChunkId]", size: int) -> "Iterator[Sequence[ChunkId]]":
    for start in range(0, len(chunks), size):
        yield chunks[start : start + size]


def _summary(report: Report) -> str:
    number = len(report.findings) + report.findings_left_out
    verdict = f"{number} findings" if number else "clean"
    if report.findings_left_out:
        verdict += f", {report.findings_left_out} of them not shown"
    return (
        f"fsck: {verdict}: {report.inodes} inodes, {report.extents} extents, "
        f"{report.replicas} replicas verified, "
        f"{report.chunks_listed} chunks listed, {report.young_unknown_chunks} unknown ones within the grace"
    )
