"""The checksum on every row of the store. Pure.

A stored value is 8 bytes of xxh3-64 followed by the value. The hash covers the key as well, so a row that
landed under another key is noticed too; the key's length is the seed, so bytes cannot move between key and
value unnoticed.

It detects damage (a bad disk, a bad page, a stray write); it is no protection against somebody who means it.
"""

from typing import Final

from xxhash import xxh3_64_digest

from shoalfs.transport.errors import DamagedRecord

SEAL_BYTES: Final = 8


def seal(key: bytes, value: bytes) -> bytes:
    """``value`` as it is stored under ``key``."""
    digest: bytes = xxh3_64_digest(key + value, len(key))
    return digest + value


def unseal(key: bytes, stored: bytes) -> bytes:
    """The value. Raises DamagedRecord if ``stored`` is not what :func:`seal` made for this key."""
    value = stored[SEAL_BYTES:]
    if not stored.startswith(xxh3_64_digest(key + value, len(key))):
        raise DamagedRecord(f"the metadata record {readable(key)} does not match its checksum", key)
    return value


def readable(key: bytes) -> str:
    """A key for people: its prefix, its inode or id as a number, and the rest as text or hex."""
    prefix, fixed, rest = key[:1], key[1:9], key[9:]
    head = prefix.decode("ascii", "replace")
    if prefix in b"MU" or len(fixed) < 8:
        return f"{head} {key[1:]!r}" if prefix != b"U" else f"{head} {key[1:].hex()}"
    text = f"{head} {int.from_bytes(fixed, 'big')}"
    if len(rest) == 8 and prefix in b"EXnzq":
        return f"{text} {int.from_bytes(rest, 'big')}"
    return f"{text} {rest!r}" if rest else text
