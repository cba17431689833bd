"""`shoal fsck` and its repair over a state machine in this process: the real commands, no service around it."""

import io
from types import SimpleNamespace

import msgspec

from shoalfs.chunkserver.messages import LIST, VERIFY, ChunksListed, ChunksVerified, VerifiedChunk
from shoalfs.fs.cli.repair import carry_out
from shoalfs.mds import find_paths, keys, mending, reads, records, trash_list
from shoalfs.mds import messages as m
from shoalfs.mds.check import check
from shoalfs.mds.entry import encode_entry
from shoalfs.transport.errors import BadMessage

_READS = {
    m.GET_MAP: lambda txn, _: reads.cluster_map(txn),
    m.CLASSIFY_CHUNKS: reads.classify_chunks,
    m.LIST_TRASH: trash_list.list_trash,
    m.RESOLVE: reads.resolve,
    m.READDIR: reads.readdir,
    m.STATUS: lambda txn, _: SimpleNamespace(inodes=0),
    m.GET_EXTENTS: lambda txn, request: reads.get_extents(txn, request)[0],
}


class Desk:
    """What an operator's command talks to. Every chunk that an extent names is there, with the length and hash that its
    extents say."""

    def __init__(self, md):
        self.md = md
        self.mends = []
        self.inspections = []
        self.operator = SimpleNamespace(
            leader=SimpleNamespace(call=self._leader), network=SimpleNamespace(call=self._target)
        )

    async def _leader(self, method, request, attempt_ms=0):
        if method is m.MUTATE:
            self.mends += request.commands
            data = encode_entry(self.md.now_ns, [(request.session, command) for command in request.commands])
            outcomes = self.md.apply(data)
            return SimpleNamespace(body=m.Mutated(self.md.machine.applied_index, tuple(outcomes)))
        with self.md.store.read() as txn:
            if method is m.OPEN_CHECK:
                self.inspections.append([page for page in check(txn, io.BytesIO) if page is not None])
                reply = m.Inspection(len(self.inspections) - 1)
            elif method is m.PLAN_MEND:
                self.inspections.append([page for page in mending.plan(txn, request) if page is not None])
                reply = m.Inspection(len(self.inspections) - 1)
            elif method is m.FIND_PATHS:
                self.inspections.append([page for page in find_paths.find(txn, request.inos) if page is not None])
                reply = m.Inspection(len(self.inspections) - 1)
            elif method in (m.READ_CHECK, m.READ_PLANS, m.READ_PATHS):
                reply = self.inspections[request.number][request.page - 1]
            else:
                reply = _READS[method](txn, request)
        if method is not m.STATUS:  # as it comes over the wire
            try:
                reply = msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=method.reply)
            except msgspec.DecodeError as error:
                raise BadMessage(str(error)) from error
        return SimpleNamespace(body=reply)

    async def _target(self, address, method, request, *, timeout_ms):
        if method is LIST:
            return SimpleNamespace(body=ChunksListed((), True))
        assert method is VERIFY
        with self.md.store.read() as txn:
            said = {}
            for key, value in txn.range(*keys.all_of(b"X")):
                extent = records.EXTENT.decode(key, value)
                said[extent.chunk] = VerifiedChunk(0, extent.chunk_bytes, extent.chunk_hash)
        return SimpleNamespace(body=ChunksVerified(tuple(said[chunk] for chunk in request.chunks)))

    async def repair(self, *, apply):
        return await carry_out(self.operator, apply=apply)
