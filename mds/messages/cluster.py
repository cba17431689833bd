"""Mutations of the cluster map, of what is kept and of what is to be deleted."""

from shoalfs.mds.messages.records import Pool, Target, TargetState
from shoalfs.transport.ids import ChunkId, InodeId, PgId, TargetId
from shoalfs.transport.method import Message


class RegisterTarget(Message, frozen=True):
    uuid: bytes
    node: str
    address: str
    capacity_bytes: int
    rack: str = ""


class TargetRegistered(Message, frozen=True):
    target: Target
    map_epoch: int


class SetTargetState(Message, frozen=True):
    target: TargetId
    state: TargetState


class MapChanged(Message, frozen=True):
    map_epoch: int


class ChangeGroup(Message, frozen=True):
    """Give a group other members. Who is a member no more is ``leaving`` from then on. Refused with EAGAIN unless
    the group is as it was when this was decided: ``epoch`` is its present one."""

    group: PgId
    epoch: int
    targets: tuple[TargetId, ...]


class SettleGroup(Message, frozen=True):
    """Every member has every chunk: who was ``leaving`` is needed no more, but for those to be ``kept``. Refused as
    above."""

    group: PgId
    epoch: int
    kept: tuple[TargetId, ...] = ()


class RemoveTarget(Message, frozen=True):
    """Forget a target that is out and holds nothing of any group."""

    target: TargetId


class Upkeep(Message, frozen=True):
    """What operators said about work in the background. Request of SET_UPKEEP, where None changes nothing."""

    rebalance_paused: bool | None = None
    scrub_requested_ns: int | None = None  # verify everything that was not verified since; -1 in a request: now
    deletions_held: bool | None = None  # no chunk is deleted anywhere, and none becomes garbage by being unknown
    held_reason: str | None = None  # why, for people
    deletions_released_ns: int | None = None  # what was garbage then does not pull the brake; NOW in a request
    brake_percent: int | None = None  # the share of all chunks that may become garbage at once; 100: there is no brake
    trash_retention_ms: int | None = None  # how long removed files are kept; 0: not at all


class CreatePool(Message, frozen=True):
    """Make a pool, with groups on the targets that there are. ``min_ack`` 0: the usual one (mds/pools.py)."""

    name: str
    replicas: int
    data: int = 1
    min_ack: int = 0


class SetPool(Message, frozen=True):
    """Change what is not None. What was acknowledged before stays as it was."""

    name: str
    new_name: str | None = None
    min_ack: int | None = None
    replicas: int | None = None
    closing: bool | None = None


class RemovePool(Message, frozen=True):
    """Forget a pool. ``closing_epoch`` is the pool's, as of before all inodes were looked through without finding one
    that names it."""

    name: str
    closing_epoch: int


class PoolChanged(Message, frozen=True):
    pool: Pool
    map_epoch: int


class PurgeTrash(Message, frozen=True):
    """These inodes are kept no longer. Those that are not in the trash are ignored."""

    inos: tuple[InodeId, ...]


class RestoreTrash(Message, frozen=True):
    """Give an inode in the trash a name again: ``name`` in ``parent``; 0: the one that it had."""

    ino: InodeId
    parent: InodeId = InodeId(0)
    name: bytes = b""


class Mend(Message, frozen=True):
    """Change rows of the store that a check found to contradict each other. Refused with EAGAIN, and nothing changed,
    unless all that it was worked out from is still so.

    ``seen``: rows and their values then (None: there was none); every row that is changed is among them. ``mended``:
    how many were applied before, so that a repeated request is refused. ``nameless``: inodes to be given a name in
    /lost+found. ``counters``: what is to be added to which counter.
    """

    mended: int
    seen: tuple[tuple[bytes, bytes | None], ...]
    put: tuple[tuple[bytes, bytes], ...] = ()
    delete: tuple[bytes, ...] = ()
    nameless: tuple[InodeId, ...] = ()
    counters: tuple[tuple[str, int], ...] = ()


class ChunkList(Message, frozen=True):
    """Request of ADD_GARBAGE (chunks that no file uses and no live session can commit) and DROP_GARBAGE (deleted)."""

    chunks: tuple[ChunkId, ...]
