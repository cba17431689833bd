"""`shoal pool`: the ways in which chunks are stored, and which directories use which.

A directory's pool is the extended attribute ``trusted.shoal.pool``; it counts for the files and directories that are
made in it from then on.
"""

import errno
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, print_table, say
from shoalfs.fs.cli.targets import ask_status, mutate
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus

app = typer.Typer(help="Pools: how many copies there are of a chunk, or how many fragments.", rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the pool, see `shoal pool list`.")]
MinAckOption = Annotated[
    int | None, typer.Option("--min-ack", metavar="N", help="On how many targets a chunk is before it is acknowledged.")
]
_XATTR: Final = "trusted.shoal.pool"


@app.callback()
def pool_group() -> None:
    """Pools: how many copies there are of a chunk, or how many fragments."""


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '-', '_' and '.'.")],
    replicas: Annotated[int | None, typer.Option(metavar="N", help="So many copies of every chunk.")] = None,
    erasure: Annotated[
        str | None, typer.Option(metavar="K+M", help="K fragments and M of parity, such as 4+2: any M may be lost.")
    ] = None,
    min_ack: MinAckOption = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Make a pool. How many copies or fragments it has cannot be changed later."""
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
    min_ack: MinAckOption = None,
    rename: Annotated[str | None, typer.Option(metavar="NEW", help="Its new name.")] = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Change what may be changed of a pool."""
    from shoalfs.mds.messages import Op, SetPool

    if min_ack is None and rename is None:
        raise UserError("pool set: give --min-ack N or --rename NEW")
    request = SetPool(name, rename, min_ack)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_POOL, request))
    say(f"pool {name} was changed")


@app.command("list")
def list_pools(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show every pool."""
    rows = describe(call(locate(mds, config, state), _ask))
    if output is Format.JSON:
        print_json(rows)
    else:
        titles = ("id", "name", "redundancy", "min_ack", "groups")
        print_table(titles, [[row[title] for title in titles] for row in rows])


@app.command("use")
def use(
    name: NameArgument,
    directory: Annotated[str, typer.Argument(metavar="DIRECTORY", help="In a mount.")],
) -> None:
    """Store in a pool what is made in a directory from now on. Needs root; files that exist stay where they are."""
    try:
        os.setxattr(directory, _XATTR, name.encode())
    except OSError as error:
        why = {
            errno.EINVAL: f"there is no pool {name}: see `shoal pool list`",
            errno.EPERM: "only root chooses a pool",
            errno.ENOTSUP: "not a directory of a shoalfs mount",
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
            "groups": sum(group.pool == pool.id for group in found.map.groups),
        }
        for pool in found.map.pools
    ]


async def _ask(operator: Operator) -> "MdsStatus":
    return await ask_status(operator)
