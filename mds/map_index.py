"""The cluster map, indexed for the leader's decisions. Pure; made anew for each epoch."""

from collections import defaultdict
from collections.abc import Iterable

from shoalfs.mds.messages import ClusterMap, PlacementGroup, Pool, Target
from shoalfs.mds.records import ChunkUse
from shoalfs.transport.fragments import fragment_bytes, fragment_hash
from shoalfs.transport.ids import ChunkId, PgId, PoolId, TargetId, chunk_pg


class MapIndex:
    def __init__(self, map_: ClusterMap) -> None:
        self.map = map_
        self.epoch = map_.epoch
        self.targets: dict[TargetId, Target] = {target.id: target for target in map_.targets}
        self.groups: dict[PgId, PlacementGroup] = {group.id: group for group in map_.groups}
        self.pools: dict[PoolId, Pool] = {pool.id: pool for pool in map_.pools}
        self.moving: list[PlacementGroup] = [group for group in map_.groups if group.leaving]
        self._member_of: dict[TargetId, list[PgId]] = defaultdict(list)
        for group in sorted(map_.groups, key=lambda group: group.id):
            for target in group.targets:
                self._member_of[target].append(group.id)

    def member_of(self, target: TargetId) -> list[PgId]:
        """The groups whose chunks the target should have, in rising order."""
        return self._member_of.get(target, [])

    def holds(self, target: TargetId, group: PgId) -> bool:
        """It may hold chunks of the group: it is a member, or leaving."""
        found = self.groups.get(group)
        return found is not None and target in found.holders

    def is_member(self, target: TargetId, group: PgId) -> bool:
        found = self.groups.get(group)
        return found is not None and target in found.targets

    def pool_of(self, group: PgId) -> Pool:
        return self.pools[self.groups[group].pool]

    def piece(self, target: TargetId, chunk: ChunkId, use: ChunkUse) -> tuple[int, bytes]:
        """Length and hash of what a holder of the chunk's group should have of it: all, or its fragment."""
        if not use.fragments:
            return use.chunk_bytes, use.chunk_hash
        group = self.groups[chunk_pg(chunk)]
        length = fragment_bytes(use.chunk_bytes, self.pools[group.pool].data)
        return length, fragment_hash(use.fragments, group.place(target))

    def spare(self, chunk: ChunkId, holders: Iterable[TargetId]) -> int:
        """How many targets may still be lost, and one more, if these have what they should of a chunk; 0: it cannot be
        read any more."""
        data = self.pool_of(chunk_pg(chunk)).data
        if data == 1:
            return len(list(holders))
        group = self.groups[chunk_pg(chunk)]
        return max(0, len({group.place(target) for target in holders}) + 1 - data)

    def needed_epoch(self, target: TargetId) -> int:
        """What was seen of the target before this epoch of the map says too little about one of its groups."""
        return max((self.groups[group].epoch for group in self.member_of(target)), default=0)
