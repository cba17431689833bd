"""The meta pages of an LMDB data file, as LMDB 0.9 lays them out on a 64-bit little-endian machine. Pure.

The first two pages of the file are meta pages; each commit writes the one that is older, and the newer one
says where the trees are. The checkpoint saves and restores them, and opening checks them first, because LMDB
itself trusts the file: a wrong page number in it is a SIGBUS, not an error.
"""

import struct
from dataclasses import dataclass
from typing import Final

from shoalfs.transport.errors import StorageFailed

PAGE_BYTES_MIN: Final = 4096
_MAGIC: Final = 0xBEEFC0DE
_VERSION: Final = 1
_META_FLAG: Final = 0x08
# Page header: number, pad, flags, bounds.
# Meta: magic, version, address, map size, two trees, last page, transaction.
_HEADER: Final = struct.Struct("<QHHI")
_META: Final = struct.Struct("<IIQQ 48s 48s QQ")


@dataclass(frozen=True, slots=True)
class MetaPage:
    page_bytes: int
    last_page: int
    txn: int


def parse(page: bytes) -> MetaPage:
    """Raises StorageFailed, saying what is wrong, if this is no meta page."""
    if len(page) < _HEADER.size + _META.size:
        raise StorageFailed("the metadata file is too short to be one")
    _, _, flags, _ = _HEADER.unpack_from(page)
    magic, version, _, _, free_tree, _, last_page, txn = _META.unpack_from(page, _HEADER.size)
    if magic != _MAGIC or not flags & _META_FLAG:
        raise StorageFailed("the metadata file is not an LMDB file, or its first pages are damaged")
    if version != _VERSION:
        raise StorageFailed(f"the metadata file has LMDB format {version}, this program reads format {_VERSION}")
    page_bytes = int.from_bytes(free_tree[:4], "little")
    if page_bytes < PAGE_BYTES_MIN or page_bytes & (page_bytes - 1) or page_bytes > 64 * 1024:
        raise StorageFailed(f"the metadata file claims pages of {page_bytes} bytes")
    return MetaPage(page_bytes, last_page, txn)


def newest(pages: bytes, file_bytes: int) -> MetaPage:
    """The meta page in force. Raises StorageFailed if either is damaged or the file ends before its last
    page."""
    first = parse(pages)
    second = parse(pages[first.page_bytes :])
    meta = max(first, second, key=lambda m: m.txn)
    if second.page_bytes != first.page_bytes:
        raise StorageFailed("the two meta pages of the metadata file contradict each other")
    if file_bytes < (meta.last_page + 1) * meta.page_bytes:
        raise StorageFailed(
            f"the metadata file ends at {file_bytes} bytes, but its last page is number {meta.last_page}"
        )
    return meta
