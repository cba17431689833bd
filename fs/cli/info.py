"""`shoal info PATH`: what the cluster holds for a path, down to the targets of every chunk."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoalfs.fs import mountinfo
from shoalfs.fs.cli import mountpoint
from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, console, print_json, print_table, size
from shoalfs.transport.errors import PosixError, UserError
from shoalfs.transport.ids import chunk_pg
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

if TYPE_CHECKING:
    from shoalfs.mds.messages import ClusterMap, Extent, Inode

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True)
class Held:
    """What the metadata service says of one inode."""

    inode: "Inode"
    extents: "tuple[Extent, ...]"
    map: "ClusterMap"


def info(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path below a mount.")],
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show a path's inode, where its bytes are, and on which targets. A symlink is not followed."""
    mount, inside = locate_path(path, mountinfo.mounts())
    held = call(locate(mds, config, state, mount), lambda operator: ask(operator, os.fsencode(inside)))
    exact = as_json(path, held)
    if output is Format.JSON:
        print_json(exact)
    else:
        _print(exact)


def locate_path(path: str, mounts: Sequence[mountinfo.Mount]) -> tuple[mountinfo.Mount, str]:
    """The mount of shoalfs that ``path`` lies in, and the path from that filesystem's root.

    Raises UserError if it lies in another filesystem.
    """
    absolute = mountpoint.absolute(path)
    mount = mountinfo.mount_of(absolute, mounts)
    if mount is None or not mount.is_shoal:
        raise UserError(f"{path}: not in a mount of shoalfs: `findmnt -t fuse.shoalfs` lists them")
    return mount, mountinfo.path_inside(absolute, mount)


async def ask(operator: Operator, path: bytes) -> Held:
    """Raises PosixError(ENOENT) if there is no such path, and transport errors."""
    from shoalfs.mds.messages import GET_EXTENTS, GET_MAP, RESOLVE, GetExtents, GetMap, ResolvePath

    try:
        inode = (await operator.leader.call(RESOLVE, ResolvePath(path))).body.inode
    except PosixError as error:
        raise PosixError(error.errno, f"info: {os.fsdecode(path)} in the cluster: {error}") from error
    map_ = (await operator.leader.call(GET_MAP, GetMap())).body
    extents: list[Extent] = []
    offset_bytes, eof = 0, not inode.is_file
    while not eof:
        reply = await operator.leader.call(
            GET_EXTENTS, GetExtents(inode.ino, offset_bytes, FILE_SIZE_BYTES_MAX - offset_bytes)
        )
        page = reply.body
        extents += page.extents
        eof = page.eof or not page.extents
        offset_bytes = extents[-1].end_bytes if extents else 0
    return Held(inode, tuple(extents), map_)


def as_json(path: str, held: Held) -> dict[str, Any]:
    """Everything that is shown, exactly. Keys are only ever added."""
    from shoalfs.mds.messages import NOT_CUT_OFF, Storage

    inode = held.inode
    inline = inode.is_file and inode.storage is Storage.INLINE
    pool = next((pool for pool in held.map.pools if pool.id == inode.pool), None)
    return {
        "path": path,
        "ino": inode.ino,
        "type": _TYPES.get(stat.S_IFMT(inode.mode), "unknown"),
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "nlink": inode.nlink,
        "size_bytes": inode.size_bytes,
        "used_bytes": inode.used_bytes,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
        "version": inode.version,
        "data_version": inode.data_version,
        "storage": ("inline" if inline else "extents") if inode.is_file else None,
        "pool": inode.pool,
        "pool_name": None if pool is None else pool.name,
        "redundancy": None if pool is None else pool.redundancy,
        "chunk_bytes": inode.chunk_bytes,
        "extent_count": inode.extents,
        "cut_off_bytes": None if inode.cut_off_bytes == NOT_CUT_OFF else inode.cut_off_bytes,
        "extents": [_extent(extent, held.map) for extent in held.extents],
    }


def _extent(extent: "Extent", map_: "ClusterMap") -> dict[str, Any]:
    targets = {target.id: target for target in map_.targets}
    group = next((group for group in map_.groups if group.id == chunk_pg(extent.chunk)), None)
    return {
        "offset_bytes": extent.offset_bytes,
        "length_bytes": extent.length_bytes,
        "chunk": f"{extent.chunk:016x}",
        "chunk_offset_bytes": extent.chunk_offset_bytes,
        "chunk_bytes": extent.chunk_bytes,
        "chunk_hash": extent.chunk_hash.hex(),
        "group": chunk_pg(extent.chunk),
        "targets": [
            {"id": target.id, "node": target.node, "state": target.state.name.lower()}
            for target in (targets.get(target_id) for target_id in (group.targets if group else ()))
            if target is not None
        ],
    }


def _print(exact: dict[str, Any]) -> None:
    screen = console()
    rows = [
        ("inode", f"{exact['ino']}  {exact['type']}  {exact['mode']}  {exact['uid']}:{exact['gid']}"),
        (
            "size",
            f"{exact['size_bytes']} B ({size(exact['size_bytes'])}), {size(exact['used_bytes'])} stored",
        ),
        ("versions", f"{exact['version']}, data {exact['data_version']}"),
    ]
    if exact["storage"] == "inline":
        rows.append(("bytes", "inline, in the metadata"))
    elif exact["storage"] == "extents":
        rows.append(("bytes", f"{exact['extent_count']} extents, chunks of {size(exact['chunk_bytes'])}"))
        if exact["cut_off_bytes"] is not None:
            rows.append(("cut off", f"at {exact['cut_off_bytes']} B; the extents behind are being removed"))
    if exact["pool_name"] is not None:
        rows.append(("pool", f"{exact['pool_name']}, {exact['redundancy']}"))
    for name, value in rows:
        screen.print(f"{name:<10} {value}", markup=False)
    if exact["extents"]:
        screen.print()
        print_table(
            ("offset", "length", "chunk", "group", "targets"),
            [
                (
                    extent["offset_bytes"],
                    extent["length_bytes"],
                    extent["chunk"],
                    extent["group"],
                    ", ".join(f"{t['id']} {t['node']} {t['state']}" for t in extent["targets"]) or "none",
                )
                for extent in exact["extents"]
            ],
        )
