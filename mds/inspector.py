"""The process that checks the metadata, plans repairs or looks for paths, beside the service: started by
:mod:`shoalfs.mds.inspections` with the store's directory and one for scratch files, ended with its standard input.

It reads the store that the service goes on changing, in one state of it. It works only when it is asked, for
INSPECTION_STEP_MS at a time, and answers with a page, or with an empty one if there is none yet.

On both pipes: the length in 4 bytes, big-endian, then a message. The first request is a :class:`Task`, each further
one is empty. An answer is one byte, then a page in msgpack (``P``; ``L``: the last one), or a line about why there will
be none (``E``). The first answer, an empty page, says that the state is chosen.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from shoalfs.mds import check, find_paths, mending
from shoalfs.mds.messages import Finding, FoundPaths, MendPlans, NamespaceChecked, PlanMend
from shoalfs.mds.store import read_beside
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import BadMessage, StorageFailed
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import CONTROL_BYTES_MAX, INSPECTION_STEP_MS
from shoalfs.transport.method import Message

LENGTH_BYTES: Final = 4
PAGE: Final = b"P"
LAST: Final = b"L"
ERROR: Final = b"E"
_NICENESS: Final = 5  # the service comes first

Page = NamespaceChecked | MendPlans | FoundPaths


class Task(Message, frozen=True):
    """``findings``: plan their repairs. ``inos``: find their paths. Neither: check everything."""

    findings: tuple[Finding, ...] | None = None
    inos: tuple[InodeId, ...] | None = None


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def main() -> None:
    store, scratch = sys.argv[1:]
    os.nice(_NICENESS)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    request = _read(requests)
    if request is None:
        return
    try:
        with read_beside(store) as txn:
            pages, page = _begin(txn, msgspec.msgpack.decode(request, type=Task), scratch)
            nothing = page
            while True:
                _write(answers, (LAST if page.done else PAGE) + msgspec.msgpack.encode(page))
                if page.done or _read(requests) is None:
                    return
                page = _step(pages) or nothing
    except BrokenPipeError:
        return  # the service has ended
    except (BadMessage, StorageFailed, OSError) as error:
        _write(answers, ERROR + str(error).encode())


def _begin(txn: ReadTxn, task: Task, scratch: str) -> tuple[Iterator[Page | None], Page]:
    """The work, and the page that says that it goes on."""
    if task.findings is not None:
        return mending.plan(txn, PlanMend(task.findings)), MendPlans((), False)
    if task.inos is not None:
        return find_paths.find(txn, task.inos), FoundPaths((), False)
    return check.check(txn, lambda: tempfile.TemporaryFile(dir=scratch)), NamespaceChecked(False, 0, (), ())


def _step(pages: Iterator[Page | None]) -> Page | None:
    """The next page, unless it takes long."""
    end = time.monotonic() + INSPECTION_STEP_MS / 1000
    for page in pages:
        if page is not None or time.monotonic() >= end:
            return page
    raise AssertionError("the last page says that it is the last")


def _read(file: BinaryIO) -> bytes | None:
    """The next request; None at the end."""
    length = file.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    size_bytes = int.from_bytes(length, "big")
    assert size_bytes <= 2 * CONTROL_BYTES_MAX, size_bytes
    return file.read(size_bytes)


def _write(file: BinaryIO, message: bytes) -> None:
    file.write(framed(message))
    file.flush()


if __name__ == "__main__":
    main()
