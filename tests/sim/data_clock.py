"""The metadata of the data world: the real state machine, on the world's clock."""

from harness.metadata import Metadata
from shoalfs.mds import cluster
from shoalfs.mds import messages as m
from shoalfs.mds.entry import encode_entry


class Timed(Metadata):
    """The state machine on the world's clock."""

    clock_ms = 0
    known: tuple[int, m.ClusterMap] | None = None

    def map(self) -> m.ClusterMap:
        """Decoded once per epoch."""
        with self.store.read() as txn:
            epoch = cluster.load_epoch(txn)
            if self.known is None or self.known[0] != epoch:
                self.known = epoch, cluster.load_map(txn)
        return self.known[1]

    def entry(self, commands):
        self.now_ns = self.clock_ms * 1_000_000
        return self.apply(encode_entry(self.now_ns, commands))

    def do(self, request, *, op=None, session=None):
        self.seq = iter((self.machine.applied_index + 1,))  # goes up with every entry
        return super().do(request, op=op, session=session)
