"""`shoal trash`: removed files that are kept for a while, and giving them back."""

import os
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, print_table, say, size
from shoalfs.fs.cli.targets import ask_status, mutate
from shoalfs.transport.errors import PosixError, UserError
from shoalfs.transport.limits import TRASH_LIST_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoalfs.mds.messages import RestoreTrash, Trashed

app = typer.Typer(help="Removed files that are kept for a while.", rich_markup_mode=None)
_NOTHING: Final = "nothing in the trash was there: see `shoal trash list`"
_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="From the root of the filesystem: /a/b.")]


@app.callback()
def group() -> None:
    """Removed files that are kept for a while."""


@app.command("list")
def list_(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show what was removed and is still there, the oldest first."""
    items = call(locate(mds, config, state), fetch)
    if output is Format.JSON:
        print_json([as_json(item) for item in items])
        return
    print_table(
        ("removed", "size", "inode", "path"),
        [(_date(i.deleted_ns), _size(i), i.inode.ino, os.fsdecode(i.path)) for i in items],
    )


@app.command()
def restore(
    path: PathArgument,
    to: Annotated[str | None, typer.Option(metavar="PATH", help="Another place, in a directory that is there.")] = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Give a removed file back, or a directory with all that was removed in it. Of several of one path, the newest."""
    place = None if to is None else os.fsencode(to)
    names = call(locate(mds, config, state), partial(give_back, path=os.fsencode(path), to=place))
    for name in names:
        say(f"restored {os.fsdecode(name)}")


@app.command()
def purge(
    path: Annotated[str | None, typer.Argument(metavar="PATH", help="With all below it.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Keep removed files no longer: their space is free after the usual grace."""
    if (path is None) is not everything:
        raise UserError("trash purge: name a PATH, or say --all")
    count = call(locate(mds, config, state), partial(empty, path=None if path is None else os.fsencode(path)))
    if path is not None and not count:
        raise UserError(f"trash: {path}: {_NOTHING}")
    say(f"{count} removed files are kept no longer")


@app.command()
def retention(
    duration: Annotated[str | None, typer.Argument(help="As 7d, 12h, 30m, 90s; 0: keep nothing.")] = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show, or set, how long removed files are kept. It holds for what is in the trash already, too."""
    from shoalfs.mds.messages import Op, Upkeep

    reach = locate(mds, config, state)
    if duration is not None:
        request = Upkeep(trash_retention_ms=duration_ms(duration))
        call(reach, lambda operator: mutate(operator, Op.SET_UPKEEP, request))
    kept_ms = call(reach, ask_status).upkeep.trash_retention_ms or 0
    typer.echo(f"removed files are kept for {kept_ms // 1000} s" if kept_ms else "removed files are not kept")


def duration_ms(text: str) -> int:
    """Raises UserError."""
    if text == "0":
        return 0
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise UserError(f"trash retention: {text}: expected a number and one of s, m, h, d, as in 7d; or 0")
    return int(found[1]) * _UNIT_MS[found[2]]


async def fetch(operator: Operator) -> "list[Trashed]":
    """All of it, the oldest first."""
    from shoalfs.mds.messages import LIST_TRASH, ListTrash

    items: list[Trashed] = []
    eof = False
    while not eof:
        after = (items[-1].deleted_ns, int(items[-1].inode.ino)) if items else (0, 0)
        page = (await operator.leader.call(LIST_TRASH, ListTrash(*after))).body
        items += page.items
        eof = page.eof or not page.items
    return items


def chosen(items: "Sequence[Trashed]", path: bytes) -> "list[Trashed]":
    """What was at ``path`` and below it; of each path the newest. Those above come first."""
    wanted = b"/" + path.strip(b"/")
    below = wanted.rstrip(b"/") + b"/"
    newest = {item.path: item for item in items if item.path == wanted or item.path.startswith(below)}
    return [newest[name] for name in sorted(newest)]


async def give_back(operator: Operator, *, path: bytes, to: bytes | None) -> list[bytes]:
    """Returns the paths that are there again. Raises UserError at the first that cannot be given back."""
    from shoalfs.mds.messages import RESOLVE, ResolvePath, RestoreTrash
    from shoalfs.transport.ids import InodeId

    items = await fetch(operator)
    found = chosen(items, path)
    if not found:
        raise UserError(f"trash: {os.fsdecode(path)}: {_NOTHING}")
    place = InodeId(0), b""
    if to is not None:
        directory, _, name = (b"/" + to.strip(b"/")).rpartition(b"/")
        if not name:
            raise UserError(f"trash: --to {os.fsdecode(to)}: expected the PATH that it is to have")
        try:
            place = (await operator.leader.call(RESOLVE, ResolvePath(directory or b"/"))).body.inode.ino, name
        except PosixError as error:
            raise UserError(f"trash: --to {os.fsdecode(to)}: {os.fsdecode(directory)}: {error}") from error
    done: list[bytes] = []
    back: set[InodeId] = set()
    above = {item.inode.ino: item for item in items}
    for item in found:
        first = item is found[0]
        for parent in _parents_in_trash(item, above, back) if to is None or not first else ():
            await _restored(operator, RestoreTrash(parent.inode.ino), parent.path)
            back.add(parent.inode.ino)
            done.append(parent.path)
        if item.inode.ino not in back:
            request = RestoreTrash(item.inode.ino, *(place if first else ()))
            await _restored(operator, request, to if first and to is not None else item.path)
            back.add(item.inode.ino)
            done.append(item.path)
    return done


async def _restored(operator: Operator, request: "RestoreTrash", path: bytes) -> None:
    """Raises UserError with the path, and what else can be done."""
    from shoalfs.mds.messages import Op

    try:
        await mutate(operator, Op.RESTORE_TRASH, request)
    except UserError as error:
        raise UserError(f"trash: {os.fsdecode(path)}: {error}: give it another place with --to PATH") from error


def _parents_in_trash(item: "Trashed", above: "dict[Any, Trashed]", back: "set[Any]") -> "list[Trashed]":
    """The directories that have to be there again first, from the top."""
    chain: list[Trashed] = []
    while item.parent in above and item.parent not in back and len(chain) < len(above):
        item = above[item.parent]
        chain.append(item)
    return chain[::-1]


async def empty(operator: Operator, *, path: bytes | None) -> int:
    from shoalfs.mds.messages import Op, PurgeTrash

    items = await fetch(operator)
    if path is not None:
        wanted = b"/" + path.strip(b"/")
        items = [i for i in items if i.path == wanted or i.path.startswith(wanted.rstrip(b"/") + b"/")]
    for start in range(0, len(items), TRASH_LIST_MAX):
        inos = tuple(item.inode.ino for item in items[start : start + TRASH_LIST_MAX])
        await mutate(operator, Op.PURGE_TRASH, PurgeTrash(inos))
    return len(items)


def as_json(item: "Trashed") -> dict[str, Any]:
    return {
        "path": os.fsdecode(item.path),
        "inode": item.inode.ino,
        "size_bytes": item.inode.size_bytes,
        "directory": item.inode.is_dir,
        "deleted_ns": item.deleted_ns,
        "uid": item.inode.uid,
    }


def _size(item: "Trashed") -> str:
    return "directory" if item.inode.is_dir else size(item.inode.size_bytes)


def _date(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9))
