"""ADD_GARBAGE: note chunks that chunkservers hold and nobody can ever use. What is in use, or could be, is
left out."""

from shoalfs.mds import extents, keys
from shoalfs.mds import inode as inodes
from shoalfs.mds.messages import ChunkList
from shoalfs.mds.ops.commit_extents import reserved_by
from shoalfs.mds.ops.context import Context
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import ChunkId, chunk_sequence
from shoalfs.transport.limits import CHUNK_LIST_MAX
from shoalfs.transport.method import Nothing


def add_garbage(txn: Txn, context: Context, request: ChunkList) -> Nothing:
    check_list(request)
    stray = [chunk for chunk in dict.fromkeys(request.chunks) if is_stray(txn, chunk)]
    extents.add_garbage(txn, stray, context.now_ns)
    return Nothing()


def check_list(request: ChunkList) -> None:
    if len(request.chunks) > CHUNK_LIST_MAX:
        raise BadMessage(f"a list has at most {CHUNK_LIST_MAX} chunks")
    if any(not 0 < chunk <= keys.U64_MAX for chunk in request.chunks):
        raise BadMessage("the list has a number that is no chunk")


def is_stray(txn: ReadTxn, chunk: ChunkId) -> bool:
    """No extent uses the chunk, it is not garbage yet, and no live session may commit it. A number that was never given
    out is no stray: the chunk is of another time (the metadata were restored from a backup) or of another cluster."""
    if txn.get(keys.chunk_use(chunk)) is not None or txn.get(keys.garbage(chunk)) is not None:
        return False
    if chunk_sequence(chunk) >= inodes.load_counters(txn).next_sequence:
        return False
    return reserved_by(txn, chunk) is None
