"""What the headers of a target's chunks say, as JSON lines: for a rescue when all metadata are lost.

::

    {"shoal_headers": 1, "cluster_id": HEX, "uuid": HEX}
    {"chunk": 281474976710657, "ino": 5, "offset": 0, "bytes": 4194304, "hash": HEX}
    {"chunk": ..., "fragment": {"place": 0, "data": 4, "parity": 2, "chunk_bytes": 16777216, "hashes": HEX}}
    ...
    {"end": true, "chunks": N}

The chunkserver must not run: its lock is taken. Nothing is changed. Damaged records are left out, as they would be left
out of the index; with ``deep`` all data is read, and what does not match its hash is left out too.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from shoalfs.chunkserver import record, scan
from shoalfs.chunkserver.directory import read_target_file
from shoalfs.chunkserver.disk import Disk
from shoalfs.chunkserver.segments import parse_name
from shoalfs.transport.errors import UserError
from shoalfs.transport.fragments import Fragment

VERSION: Final = 1


def lines(disk: Disk, path: str, *, deep: bool = False) -> Iterator[bytes]:
    """Raises UserError if it is no target directory or in use, OSError."""
    try:
        made = read_target_file(disk, path)
    except FileNotFoundError as error:
        raise UserError(f"headers: {path}: no directory of a target: there is no target.json") from error
    lock = disk.open(f"{path}/lock", create=True)
    try:
        if not disk.lock(lock):
            raise UserError(f"{path}: a chunkserver uses it: stop it first")
        yield _line({"shoal_headers": VERSION, "cluster_id": made.cluster_id, "uuid": made.uuid})
        count = 0
        for header, fragment in _live(disk, path, bytes.fromhex(made.cluster_id), deep=deep):
            count += 1
            said: dict[str, Any] = {
                "chunk": header.chunk,
                "ino": header.ino,
                "offset": header.offset_bytes,
                "bytes": header.chunk_bytes,
                "hash": header.chunk_hash.hex(),
            }
            if fragment is not None:
                said["fragment"] = {
                    "place": fragment.place,
                    "data": fragment.data,
                    "parity": fragment.parity,
                    "chunk_bytes": fragment.chunk_bytes,
                    "hashes": fragment.hashes.hex(),
                }
            yield _line(said)
        yield _line({"end": True, "chunks": count})
    finally:
        disk.close(lock)


def _live(disk: Disk, path: str, cluster_id: bytes, *, deep: bool) -> Iterator[tuple[record.Header, Fragment | None]]:
    folder = f"{path}/segments"
    for name in sorted(disk.list_dir(folder)):
        parsed = parse_name(name)
        if parsed is None:
            continue
        fd = disk.open(f"{folder}/{name}")
        try:
            segment = scan.Segment(disk, fd, parsed[0], cluster_id, disk.size(fd))
            for item in scan.walk(segment, 0):
                if not isinstance(item, scan.Found) or not item.whole or item.header.state is not record.State.LIVE:
                    continue
                if not deep or not scan.check_data(segment, item.header):
                    head = segment.read(item.header.position_bytes, item.header.data_offset)
                    yield item.header, record.fragment_in(head, item.header)
        finally:
            disk.close(fd)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
