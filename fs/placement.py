"""Where a new chunk goes, and which replica is asked first. Pure: everything follows from the cluster map.

Groups are ordered so that neighbours lead with different targets, and consecutive chunks of a file take
consecutive groups: a large file is written to and read from as many disks as there are. Each file begins
elsewhere, by a hash of its inode number, so that many small files spread as well.
"""

from collections.abc import Collection
from typing import Final

from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, Target, TargetState
from shoalfs.transport.errors import TargetDown
from shoalfs.transport.ids import ChunkId, InodeId, PgId, PoolId, TargetId, chunk_pg, chunk_sequence

_UP: Final = frozenset({TargetState.UP, TargetState.SYNCING})
_LAST_ASKED: Final = {TargetState.SYNCING: 1, TargetState.DOWN: 2, TargetState.OUT: 3}
_GOLDEN: Final = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Fibonacci hashing spreads consecutive numbers


class Placement:
    """The cluster map, indexed. Made anew for each epoch."""

    def __init__(self, cluster_map: ClusterMap) -> None:
        self.epoch = cluster_map.epoch
        self._targets: dict[TargetId, Target] = {target.id: target for target in cluster_map.targets}
        self._groups: dict[PgId, PlacementGroup] = {group.id: group for group in cluster_map.groups}
        self._pools: dict[PoolId, Pool] = {pool.id: pool for pool in cluster_map.pools}
        self._order: dict[PoolId, list[PlacementGroup]] = {
            pool.id: _interleaved([group for group in cluster_map.groups if group.pool == pool.id])
            for pool in cluster_map.pools
        }

    def min_ack(self, pool: PoolId) -> int:
        """Receipts that a commit needs for each chunk. Raises TargetDown for a pool that the map does not
        have."""
        return self.pool(pool).min_ack

    def knows(self, pool: PoolId) -> bool:
        return pool in self._pools

    def pool(self, pool: PoolId) -> Pool:
        """Raises TargetDown for a pool that the map does not have."""
        if pool not in self._pools:
            raise TargetDown(f"the cluster map has no pool {pool}")
        return self._pools[pool]

    def pool_of(self, chunk: ChunkId) -> Pool | None:
        """The pool of the chunk's group; None: the map has no such group."""
        group = self._groups.get(chunk_pg(chunk))
        return None if group is None else self._pools[group.pool]

    def group_for(
        self, pool: PoolId, ino: InodeId, index: int, avoid: Collection[TargetId], *, least: int | None = None
    ) -> PlacementGroup | None:
        """The group for chunk number ``index`` of a file: the first from its turn on all of whose targets, or ``least``
        of them, are up and not in ``avoid``. None if there is none."""
        groups = self._order.get(pool, [])
        first = _hash(ino) + index
        for step in range(len(groups)):
            group = groups[(first + step) % len(groups)]
            usable = sum(self._is_up(target) and target not in avoid for target in group.targets)
            if usable >= (len(group.targets) if least is None else least):
                return group
        return None

    def choose(
        self, pool: PoolId, ino: InodeId, index: int, full: Collection[TargetId], failed: Collection[TargetId]
    ) -> PlacementGroup | None:
        """The group that is to take a chunk: without targets that are full or failed lately if there is one, else with
        those that failed; and if no group is whole, one with enough targets for ``min_ack``. None if there is none."""
        for least in (None, self.min_ack(pool)):
            for avoid in ({*full, *failed}, full):
                group = self.group_for(pool, ino, index, avoid, least=least)
                if group is not None:
                    return group
        return None

    def members(self, chunk: ChunkId) -> list[TargetId]:
        """Those who are to have the chunk and are not down: who returns is compared with the metadata anyhow."""
        group = self._groups.get(chunk_pg(chunk))
        return [] if group is None else [t for t in group.targets if self._is_up(t)]

    def targets(self, group: PlacementGroup) -> list[tuple[int, Target]]:
        """The targets of the group that can be written to, with their places in it."""
        return [(place, self._targets[t]) for place, t in enumerate(group.targets) if self._is_up(t)]

    def target(self, target: TargetId) -> Target | None:
        return self._targets.get(target)

    def replicas(self, chunk: ChunkId, salt: int, avoid: Collection[TargetId]) -> list[Target]:
        """Everyone who may have the chunk, in the order in which to ask: who has all of it before who is still being
        filled, and last who probably does not answer. ``salt`` differs between clients, so
        that they do not all ask the same one first; one client stays with its choice, which keeps server
        caches warm."""
        group = self._groups.get(chunk_pg(chunk))
        if group is None:
            return []
        start = _hash(chunk_sequence(chunk) + salt) % len(group.targets)
        turned = group.targets[start:] + group.targets[:start] + group.leaving
        found = [self._targets[target] for target in turned if target in self._targets]
        return sorted(found, key=lambda target: (_LAST_ASKED.get(target.state, 0), target.id in avoid))

    def fragments(self, chunk: ChunkId, avoid: Collection[TargetId]) -> dict[int, list[Target]]:
        """Who may have each fragment of a chunk, by place, in the order in which to ask. Places whose first target
        probably answers come first, those of ``avoid`` after them."""
        group = self._groups.get(chunk_pg(chunk))
        if group is None:
            return {}
        holders: dict[int, list[Target]] = {}
        for target in group.holders:
            if target in self._targets:
                holders.setdefault(group.place(target), []).append(self._targets[target])

        def rank(target: Target) -> tuple[int, bool]:
            return _LAST_ASKED.get(target.state, 0), target.id in avoid

        asked = {place: sorted(targets, key=rank) for place, targets in holders.items()}
        return dict(sorted(asked.items(), key=lambda item: (rank(item[1][0]), item[0])))

    def is_doubtful(self, target: Target, avoid: Collection[TargetId]) -> bool:
        """It probably does not answer, or lacks much."""
        return target.id in avoid or target.state in _LAST_ASKED

    def may_come_back(self, targets: Collection[TargetId]) -> bool:
        """Whether one of them counts as up, so that it is worth waiting for one that does not answer."""
        return any(self._is_up(target) for target in targets)

    def _is_up(self, target: TargetId) -> bool:
        return self._state(target) in _UP

    def _state(self, target: TargetId) -> TargetState:
        return self._targets[target].state if target in self._targets else TargetState.OUT


def _interleaved(groups: list[PlacementGroup]) -> list[PlacementGroup]:
    """First the first group of each leading target, then the second of each, and so on."""
    by_leader: dict[TargetId, list[PlacementGroup]] = {}
    for group in sorted(groups, key=lambda group: group.id):
        by_leader.setdefault(group.targets[0], []).append(group)
    rounds = max(map(len, by_leader.values()), default=0)
    return [led[turn] for turn in range(rounds) for led in by_leader.values() if turn < len(led)]


def _hash(number: int) -> int:
    return (number * _GOLDEN & (1 << 64) - 1) >> 32
