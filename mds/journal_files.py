"""Making and writing the log's files. Their content: `mds/journal_format.py`; what a crash leaves: `mds/journal.py`."""

import contextlib
import os
from pathlib import Path

from shoalfs.mds.journal_format import SegmentHeader, encode_header


def segment_name(first_number: int) -> str:
    return f"{first_number:020d}.log"


def begin_segment(path: Path, header: SegmentHeader) -> int:
    """Make a segment with its header and return its descriptor. See the list of durable steps in journal.py."""
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        write_all(descriptor, encode_header(header), 0)
        os.fsync(descriptor)
        temporary.rename(path)
        sync_directory(path.parent)
        undo.pop_all()
    return descriptor


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
