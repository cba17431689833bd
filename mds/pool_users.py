"""Which inodes name a pool: asked, page by page, before a pool is removed. Pure."""

from itertools import islice
from typing import Final

from shoalfs.mds import keys, records
from shoalfs.mds.messages import ListPoolUsers, PoolUsers
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.ids import InodeId

_PAGE: Final = 10_000  # inodes that are read at a time: some tens of milliseconds


def pool_users(txn: ReadTxn, request: ListPoolUsers) -> PoolUsers:
    """Orphans and what is in the trash count like all others: their chunks are there as well. Raises BadMessage, and
    DamagedRecord: what cannot be read may name the pool."""
    if not 0 <= request.after_ino < keys.U64_MAX:
        raise BadMessage(f"{request.after_ino} is no inode")
    rows = txn.range(keys.inode(InodeId(request.after_ino + 1)), keys.all_of(b"I")[1])
    page = [records.INODE.decode(key, value) for key, value in islice(rows, _PAGE)]
    users = [inode for inode in page if inode.pool == request.pool and (inode.is_dir or inode.is_file)]
    directories = sum(inode.is_dir for inode in users)
    return PoolUsers(
        len(users) - directories,
        directories,
        users[0].ino if users else InodeId(0),
        page[-1].ino if len(page) == _PAGE else InodeId(0),
    )
