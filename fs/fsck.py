"""What is wrong with a filesystem, worked out from what the metadata say and what the chunkservers answer.
Pure.

Knows nothing of connections: the command `shoal fsck` asks, page by page, and hands in the answers.

The filesystem is in use while it is checked. The one rule: a chunk counts as wrong only if the metadata still
link to it after the chunkserver answered; what was deleted in between is no finding.
"""

import enum
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from shoalfs.chunkserver.messages import ListedChunk, VerifiedChunk
from shoalfs.mds import messages as mds
from shoalfs.transport.errors import ChunkMissing
from shoalfs.transport.fragments import fragment_bytes, fragment_hash
from shoalfs.transport.ids import ChunkId, InodeId, PgId, TargetId, chunk_pg

NO_INODE: Final = InodeId(0)


class Kind(enum.StrEnum):
    """Stable words of what is found beside the metadata service's own findings."""

    CONFLICTING_EXTENTS = "conflicting-extents"
    NO_GROUP = "no-such-group"
    LOST_CHUNK = "lost-chunk"
    MISSING_REPLICA = "missing-replica"
    DAMAGED_REPLICA = "damaged-replica"
    WRONG_REPLICA = "wrong-replica"
    UNREACHABLE_TARGET = "unreachable-target"
    UNKNOWN_CHUNK = "unknown-chunk"


_REMEDY: Final[dict[str, str]] = {
    Kind.CONFLICTING_EXTENTS: "restore the file from a copy, and report this",
    Kind.NO_GROUP: "restore the file from a copy, and report this",
    Kind.LOST_CHUNK: "restore the file from a copy",
    Kind.MISSING_REPLICA: "wait: another copy is made, see `shoal status`",
    Kind.DAMAGED_REPLICA: "`shoal fsck repair --deep --apply` has a good copy made; and check the disk",
    Kind.WRONG_REPLICA: "wait: a good copy takes its place, see `shoal status`; and report this",
    Kind.UNREACHABLE_TARGET: "start its chunkserver and check again",
    Kind.UNKNOWN_CHUNK: "nothing is lost: it only takes space; report this",
}
_REMEDY_OF_METADATA: Final = "see what `shoal fsck repair` would do, and report this"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``ino`` 0: it belongs to no file."""

    kind: str
    text: str
    ino: InodeId = NO_INODE
    chunk: ChunkId | None = None
    target: TargetId | None = None
    path: str = ""
    row: mds.Finding | None = None  # as the metadata service found it

    @property
    def remedy(self) -> str:
        return _REMEDY.get(self.kind, _REMEDY_OF_METADATA)

    def line(self) -> str:
        """ "kind: where: what: what to do"."""
        where = self.path or (f"inode {self.ino}" if self.ino else f"target {self.target}")
        return f"{self.kind}: {where}: {self.text}: {self.remedy}"

    def as_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "ino": self.ino or None,
            "path": self.path or None,
            "chunk": None if self.chunk is None else f"{self.chunk:016x}",
            "target": self.target,
            "text": self.text,
            "remedy": self.remedy,
        }


class Expected(NamedTuple):
    """What the metadata say of a chunk."""

    ino: InodeId
    chunk_bytes: int
    chunk_hash: bytes
    fragments: bytes = b""

    def of(self, place: int | None, data: int) -> tuple[int, bytes]:
        """Length and hash of what a target has of it: all, or the fragment at ``place``; it takes ``data`` to read."""
        if place is None or not self.fragments:
            return self.chunk_bytes, self.chunk_hash
        return fragment_bytes(self.chunk_bytes, data), fragment_hash(self.fragments, place)


class Replica(NamedTuple):
    target: TargetId
    chunk: ChunkId


def of_namespace(findings: Iterable[mds.Finding]) -> list[Finding]:
    """The metadata service's own findings."""
    return [Finding(found.kind, found.text, found.ino, row=found) for found in findings]


def expected_chunks(
    extents: Iterable[tuple[InodeId, mds.Extent]],
) -> tuple[dict[ChunkId, Expected], list[Finding]]:
    """The chunks that ``extents`` name. Extents that say different things of one chunk are findings."""
    expected: dict[ChunkId, Expected] = {}
    findings = []
    for ino, extent in extents:
        said = Expected(ino, extent.chunk_bytes, extent.chunk_hash, extent.fragments)
        first = expected.setdefault(extent.chunk, said)
        if first[1:] != said[1:]:
            text = f"chunk {extent.chunk:016x} has another length or hash in inode {first.ino}"
            findings.append(Finding(Kind.CONFLICTING_EXTENTS, text, ino, extent.chunk))
    return expected, findings


def holders(map_: mds.ClusterMap) -> dict[PgId, tuple[TargetId, ...]]:
    """The targets of each group that hold its chunks, the members first. A member that is out holds nothing to rely
    on; one that is leaving does until the members have everything."""
    out = {target.id for target in map_.targets if target.state is mds.TargetState.OUT}
    return {
        group.id: (*(t for t in group.targets if t not in out), *(t for t in group.leaving if t not in out))
        for group in map_.groups
    }


def leaving(map_: mds.ClusterMap) -> dict[PgId, frozenset[TargetId]]:
    """Targets that need not have every chunk of a group, although some may be there only."""
    return {group.id: frozenset(group.leaving) for group in map_.groups if group.leaving}


class Fragments(NamedTuple):
    """Of a group whose targets have a fragment each: how many are needed, and who has which."""

    data: int
    places: dict[TargetId, int]


def fragmented(map_: mds.ClusterMap) -> dict[PgId, Fragments]:
    """The groups of pools of fragments."""
    data = {pool.id: pool.data for pool in map_.pools}
    return {
        group.id: Fragments(data[group.pool], {target: group.place(target) for target in group.holders})
        for group in map_.groups
        if data.get(group.pool, 1) > 1
    }


def replicas(
    expected: Mapping[ChunkId, Expected], groups: Mapping[PgId, Sequence[TargetId]]
) -> tuple[dict[TargetId, list[ChunkId]], list[Finding]]:
    """Which chunks each target has to be asked for. A chunk of a group that nobody holds is a finding."""
    by_target: dict[TargetId, list[ChunkId]] = defaultdict(list)
    findings = []
    for chunk, said in expected.items():
        targets = groups.get(chunk_pg(chunk), ())
        for target in targets:
            by_target[target].append(chunk)
        if not targets:
            text = f"chunk {chunk:016x} is of group {chunk_pg(chunk)}, which has no target"
            findings.append(Finding(Kind.NO_GROUP, text, said.ino, chunk))
    return dict(by_target), findings


def fault(said: Expected, answer: VerifiedChunk, place: int | None = None, data: int = 1) -> Kind | None:
    """What is wrong with one replica, if anything; or with the fragment at ``place``."""
    if answer.code == ChunkMissing.code:
        return Kind.MISSING_REPLICA
    if answer.code:
        return Kind.DAMAGED_REPLICA
    if (answer.chunk_bytes, answer.chunk_hash) != said.of(place, data):
        return Kind.WRONG_REPLICA
    return None


def suspects(
    expected: Mapping[ChunkId, Expected],
    answers: Mapping[Replica, VerifiedChunk],
    fragmented: Mapping[PgId, Fragments] | None = None,
) -> list[ChunkId]:
    """Chunks with a bad replica: the metadata have to be asked whether they still link to them."""
    known = fragmented or {}
    bad = {
        replica.chunk for replica, answer in answers.items() if _fault(expected[replica.chunk], replica, answer, known)
    }
    return sorted(bad)


def _fault(
    said: Expected, replica: Replica, answer: VerifiedChunk, fragmented: Mapping[PgId, Fragments]
) -> Kind | None:
    group = fragmented.get(chunk_pg(replica.chunk))
    return fault(said, answer) if group is None else fault(said, answer, group.places[replica.target], group.data)


def judge(
    expected: Mapping[ChunkId, Expected],
    groups: Mapping[PgId, Sequence[TargetId]],
    answers: Mapping[Replica, VerifiedChunk],
    linked: Collection[ChunkId],
    leaving: Mapping[PgId, Collection[TargetId]] | None = None,
    fragmented: Mapping[PgId, Fragments] | None = None,
) -> list[Finding]:
    """Findings about the chunks in ``linked``, which are the suspects that are still in use.

    A replica without an answer is on a target that could not be asked: it is neither good nor bad. A chunk is
    lost only if every replica was asked and none is good; where there are fragments, if too few are good or were not
    asked. What a target in ``leaving`` lacks is no finding of its own.
    """
    findings = []
    for chunk in linked:
        said, targets = expected[chunk], groups[chunk_pg(chunk)]
        asked = [Replica(target, chunk) for target in targets if Replica(target, chunk) in answers]
        faults = {r.target: found for r in asked if (found := _fault(said, r, answers[r], fragmented or {}))}
        group = (fragmented or {}).get(chunk_pg(chunk))
        left = {target if group is None else group.places[target] for target in targets if target not in faults}
        if len(left) < (1 if group is None else group.data):
            what = "no good copy" if group is None else f"{len(left)} good fragments, of {group.data} that it takes,"
            text = f"{what} of chunk {chunk:016x}: " + ", ".join(
                f"{_short(found)} on target {target}" for target, found in faults.items()
            )
            findings.append(Finding(Kind.LOST_CHUNK, text, said.ino, chunk))
            continue
        for target, found in faults.items():
            if leaving and target in leaving.get(chunk_pg(chunk), ()):
                continue
            text = f"chunk {chunk:016x} is {_short(found)} on target {target}"
            findings.append(Finding(found, text, said.ino, chunk, target))
    return findings


def unreachable(target: mds.Target, why: str) -> Finding:
    """A target that could not be asked; said once, however many chunks it holds."""
    text = f"target {target.id} on {target.node} could not be checked ({why})"
    return Finding(Kind.UNREACHABLE_TARGET, text, target=target.id)


def unknown_chunks(
    target: TargetId, listed: Sequence[ListedChunk], classes: Sequence[int], *, now_ns: int, grace_ms: int
) -> tuple[list[Finding], int]:
    """Chunks on ``target`` that nobody can ever use: findings if older than the grace, else only their
    number.

    ``classes`` are the metadata's answers in the order of ``listed``. A chunk is young for a while without
    any fault: it was stored by a client that ended before its commit.
    """
    findings, young = [], 0
    for chunk, known in zip(listed, classes, strict=True):
        if known != mds.ChunkClass.UNKNOWN:
            continue
        age_s = (now_ns - chunk.stored_ns) // 1_000_000_000
        if age_s * 1000 < grace_ms:
            young += 1
            continue
        text = (
            f"chunk {chunk.chunk:016x} of {chunk.chunk_bytes} bytes on target {target} belongs to no file, "
            f"{age_s} s old"
        )
        findings.append(Finding(Kind.UNKNOWN_CHUNK, text, chunk=chunk.chunk, target=target))
    return findings, young


def with_paths(findings: Iterable[Finding], paths: Mapping[InodeId, str]) -> list[Finding]:
    """The findings with the paths that were found for their inodes."""
    return [replace(found, path=paths.get(found.ino, "")) for found in findings]


def _short(kind: Kind) -> str:
    return kind.partition("-")[0]
