"""BadReplicas: tells the metadata service which copies were not there or not right, so that they are repaired; met by
readers, or known to a writer whose chunk not all of its group have taken.

Not in the way of anybody: what was met is remembered, without the same twice and not without bound, and sent once a
second. A report that is lost is no harm: the next reader meets the copy again, inventories and scrubbing find it.
"""

from contextlib import suppress
from typing import Final, Never

import trio

from shoalfs.fs.ports import Metadata
from shoalfs.mds.messages import REPORT_REPLICAS, BadReplica, ReportReplicas
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing, ShoalError, wire_code
from shoalfs.transport.ids import ChunkId, TargetId
from shoalfs.transport.limits import BAD_REPLICAS_MAX

_PAUSE_S: Final = 1.0


class BadReplicas:
    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._met: dict[tuple[TargetId, ChunkId], BadReplica] = {}
        self._some = trio.Event()

    def note(self, target: TargetId, chunk: ChunkId, error: ShoalError) -> None:
        """A target answered with this error; only what says something of the copy counts."""
        if isinstance(error, ChunkMissing | ChunkCorrupt) and len(self._met) < BAD_REPLICAS_MAX:
            self._met[target, chunk] = BadReplica(target, chunk, wire_code(error))
            self._some.set()

    async def run(self) -> Never:
        """Send what is noted, until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            met, self._met = self._met, {}
            with suppress(ShoalError):  # see the module: nothing depends on it
                await self._metadata.read(REPORT_REPLICAS, ReportReplicas(tuple(met.values())))
            await trio.sleep(_PAUSE_S)
