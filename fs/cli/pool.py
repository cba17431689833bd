"""`shoal pool`: the ways in which chunks are stored, and which directories use which.

A directory's pool is the extended attribute ``trusted.shoal.pool``; it counts for the files and directories that are
made in it from then on.
"""

import errno
import os
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs import mountinfo
from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_rows, say
from shoalfs.fs.cli.targets import ask_status, mutate
from shoalfs.transport.errors import ShoalError, UserError
from shoalfs.transport.limits import FRAGMENTS_MAX, REPLICAS_MAX

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus
    from shoalfs.transport.ids import PoolId

app = typer.Typer(help="Pools: how many copies there are of a chunk, or how many fragments.", rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pool, see `shoal pool list`.")]
MinAckOption = Annotated[
    int | None,
    typer.Option(
        "--min-ack",
        metavar="N",
        min=1,
        max=FRAGMENTS_MAX,
        help="On how many targets a chunk is before it is acknowledged.",
    ),
]
ReplicasOption = Annotated[
    int | None, typer.Option("--replicas", metavar="N", min=1, max=REPLICAS_MAX, help="So many copies of every chunk.")
]
_XATTR: Final = "trusted.shoal.pool"
_REOPEN_S: Final = 5.0
_COLUMNS: Final = {
    "id": "id",
    "name": "name",
    "redundancy": "redundancy",
    "min_ack": "min_ack",
    "groups": "groups",
    "state": "state",
}


@app.callback()
def pool_group() -> None:
    """Pools: how many copies there are of a chunk, or how many fragments."""


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '-', '_' and '.'.")],
    replicas: ReplicasOption = None,
    erasure: Annotated[
        str | None, typer.Option(metavar="K+M", help="K fragments and M of parity, such as 4+2: any M may be lost.")
    ] = None,
    min_ack: MinAckOption = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Make a pool. The number of copies can be changed later, that of fragments cannot."""
    from shoalfs.mds.messages import CreatePool, Op

    if (replicas is None) == (erasure is None):
        raise UserError("pool create: give either --replicas N or --erasure K+M")
    data, width = (1, replicas) if replicas is not None else fragments(erasure or "")
    assert width is not None
    request = CreatePool(name, width, data, min_ack or 0)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.CREATE_POOL, request))
    say(f"pool {name} was made: use it with `shoal pool use {name} DIRECTORY`")


@app.command("set")
def change(
    name: NameArgument,
    replicas: ReplicasOption = None,
    min_ack: MinAckOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NEW", help="Its new name.")] = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Change a pool. More copies are made, and those that are too many removed, in the background."""
    from shoalfs.mds.messages import Op, SetPool

    if replicas is None and min_ack is None and rename is None:
        raise UserError("pool set: give --replicas N, --min-ack N or --rename NEW")
    request = SetPool(name, rename, min_ack, replicas)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_POOL, request))
    say(f"pool {name} was changed" + (": `shoal status` shows how far its copies are" if replicas is not None else ""))


@app.command("remove")
def remove(name: NameArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Forget a pool. Refused while any directory, file or chunk is in it."""
    call(locate(mds, config, state), partial(_remove, name=name))
    say(f"pool {name} was removed")


@app.command("list")
def list_pools(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show every pool."""
    print_rows(output, describe(call(locate(mds, config, state), ask_status)), _COLUMNS)


@app.command("use")
def use(
    name: NameArgument,
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="In a mount.")],
) -> None:
    """Store in a pool what is made in a directory from now on. Needs root; files that exist stay where they are."""
    found = mountinfo.mount_of(os.path.realpath(directory), mountinfo.mounts())
    if os.path.exists(directory) and (found is None or not found.is_shoal):
        raise UserError(f"pool use: {directory}: not in a shoalfs mount")
    try:
        os.setxattr(directory, _XATTR, name.encode())
    except OSError as error:
        why = {
            errno.EINVAL: f"there is no pool {name}: see `shoal pool list`",
            errno.EPERM: "only root chooses a pool",
            errno.ENOTSUP: "not a directory of a shoalfs mount",
            errno.EBUSY: f"pool {name} is being removed",
        }.get(error.errno or 0, error.strerror)
        raise UserError(f"pool use: {directory}: {why}") from error
    say(f"what is made in {directory} goes to pool {name}")


def fragments(text: str) -> tuple[int, int]:
    """Of "K+M": K, and K + M. Raises UserError."""
    found = re.fullmatch(r"([0-9]{1,3})\+([0-9]{1,3})", text)
    data, parity = (int(found[1]), int(found[2])) if found else (0, 0)
    if data < 2 or parity < 1:
        raise UserError(f"--erasure {text}: expected K+M with K at least 2 and M at least 1, such as 4+2")
    return data, data + parity


def describe(found: "MdsStatus") -> list[dict[str, Any]]:
    """One row for each pool."""
    return [
        {
            "id": pool.id,
            "name": pool.name,
            "redundancy": pool.redundancy,
            "data": pool.data,
            "parity": pool.parity,
            "min_ack": pool.min_ack,
            "state": "being removed" if pool.closing_epoch else "open",
            "groups": sum(group.pool == pool.id for group in found.map.groups),
        }
        for pool in found.map.pools
    ]


async def _remove(operator: Operator, name: str) -> None:
    """Close the pool, look for whoever uses it, and remove it if that is nobody; else open it again. If this is
    interrupted, the pool stays closed until it is tried again."""
    import trio

    from shoalfs.mds.messages import Op, RemovePool, SetPool

    await mutate(operator, Op.SET_POOL, SetPool(name, closing=True))
    (pool,) = [pool for pool in (await ask_status(operator)).map.pools if pool.name == name]
    try:
        used = await _users(operator, pool.id)
        if used is not None:
            raise UserError(f"pool remove: {name}: in use by {used}")
        await mutate(operator, Op.REMOVE_POOL, RemovePool(name, pool.closing_epoch))
    except BaseException:
        with trio.CancelScope(shield=True), trio.move_on_after(_REOPEN_S), suppress(ShoalError, UserError):
            await mutate(operator, Op.SET_POOL, SetPool(name, closing=False))
        raise


async def _users(operator: Operator, pool: "PoolId") -> str | None:
    """Who uses a pool, in words; None: nobody does."""
    from shoalfs.mds.messages import POOL_USERS, ListPoolUsers
    from shoalfs.transport.ids import InodeId

    files, directories, example, after = 0, 0, InodeId(0), InodeId(0)
    while True:
        found = (await operator.leader.call(POOL_USERS, ListPoolUsers(pool, after))).body
        files, directories, example = files + found.files, directories + found.directories, example or found.example
        after = found.next_ino
        if not after:
            break
    if not example:
        return None
    return f"{files} files and {directories} directories: find one with `find MOUNTPOINT -inum {example}`"
