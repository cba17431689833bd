"""Which function carries out which operation."""

from collections.abc import Callable
from typing import Any, Final

from shoalfs.mds.messages import Op
from shoalfs.mds.ops.add_garbage import add_garbage
from shoalfs.mds.ops.allocate import allocate
from shoalfs.mds.ops.change_group import change_group, settle_group
from shoalfs.mds.ops.clone_range import clone_range
from shoalfs.mds.ops.commit_extents import commit_extents
from shoalfs.mds.ops.commit_inline import commit_inline
from shoalfs.mds.ops.context import Context
from shoalfs.mds.ops.create import create
from shoalfs.mds.ops.create_pool import create_pool
from shoalfs.mds.ops.drop_garbage import drop_garbage
from shoalfs.mds.ops.end_session import end_session
from shoalfs.mds.ops.link import link
from shoalfs.mds.ops.mend import mend
from shoalfs.mds.ops.merge_extents import merge_extents
from shoalfs.mds.ops.mkdir import mkdir
from shoalfs.mds.ops.mknod import mknod
from shoalfs.mds.ops.open_session import open_session
from shoalfs.mds.ops.purge_trash import purge_trash
from shoalfs.mds.ops.reap import reap
from shoalfs.mds.ops.register_target import register_target
from shoalfs.mds.ops.remove_target import remove_target
from shoalfs.mds.ops.removexattr import removexattr
from shoalfs.mds.ops.rename import rename
from shoalfs.mds.ops.reserve_chunks import reserve_chunks
from shoalfs.mds.ops.reserve_inodes import reserve_inodes
from shoalfs.mds.ops.restore_trash import restore_trash
from shoalfs.mds.ops.rmdir import rmdir
from shoalfs.mds.ops.set_pool import remove_pool, set_pool
from shoalfs.mds.ops.set_target_state import set_target_state
from shoalfs.mds.ops.set_upkeep import set_upkeep
from shoalfs.mds.ops.setattr import setattr_
from shoalfs.mds.ops.setxattr import setxattr
from shoalfs.mds.ops.symlink import symlink
from shoalfs.mds.ops.tmpfile import tmpfile
from shoalfs.mds.ops.trim import trim
from shoalfs.mds.ops.unlink import unlink
from shoalfs.mds.txn import Txn

Operation = Callable[[Txn, Context, Any], Any]

OPERATIONS: Final[dict[Op, Operation]] = {
    Op.OPEN_SESSION: open_session,
    Op.END_SESSION: end_session,
    Op.RESERVE_CHUNKS: reserve_chunks,
    Op.RESERVE_INODES: reserve_inodes,
    Op.CREATE: create,
    Op.TMPFILE: tmpfile,
    Op.MKNOD: mknod,
    Op.MKDIR: mkdir,
    Op.SYMLINK: symlink,
    Op.LINK: link,
    Op.UNLINK: unlink,
    Op.RMDIR: rmdir,
    Op.RENAME: rename,
    Op.SETATTR: setattr_,
    Op.SETXATTR: setxattr,
    Op.REMOVEXATTR: removexattr,
    Op.COMMIT_INLINE: commit_inline,
    Op.COMMIT_EXTENTS: commit_extents,
    Op.ALLOCATE: allocate,
    Op.CLONE_RANGE: clone_range,
    Op.MERGE_EXTENTS: merge_extents,
    Op.REAP: reap,
    Op.TRIM: trim,
    Op.REGISTER_TARGET: register_target,
    Op.SET_TARGET_STATE: set_target_state,
    Op.ADD_GARBAGE: add_garbage,
    Op.DROP_GARBAGE: drop_garbage,
    Op.CHANGE_GROUP: change_group,
    Op.SETTLE_GROUP: settle_group,
    Op.REMOVE_TARGET: remove_target,
    Op.SET_UPKEEP: set_upkeep,
    Op.MEND: mend,
    Op.PURGE_TRASH: purge_trash,
    Op.RESTORE_TRASH: restore_trash,
    Op.CREATE_POOL: create_pool,
    Op.SET_POOL: set_pool,
    Op.REMOVE_POOL: remove_pool,
}
