"""`shoal dump`: all metadata as JSON lines, as of one moment."""

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import say, size
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path


def dump(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; -: standard output.")],
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Write all metadata into FILE: names, attributes, small files, and where the bytes of large ones are. `shoal load`
    makes a metadata node of it. FILE is there only once it is whole and on disk."""
    from pathlib import Path

    reach = locate(mds, config, state)
    if file == "-":
        call(reach, partial(fetch, into=sys.stdout.buffer))
        return
    path = Path(file)
    part = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as into:
            size_bytes = call(reach, partial(fetch, into=into))
            into.flush()
            os.fsync(into.fileno())
        part.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise UserError(f"dump: {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    say(f"{path}: {size(size_bytes)}")


async def fetch(operator: Operator, into: BinaryIO) -> int:
    """Returns the number of bytes. Raises ShoalError; what is in ``into`` is of no use then."""
    from shoalfs.mds.messages import OPEN_DUMP, READ_DUMP, OpenDump, ReadDump

    number = (await operator.leader.call(OPEN_DUMP, OpenDump())).body.number
    offset, eof = 0, False
    while not eof:
        reply = await operator.leader.call(READ_DUMP, ReadDump(number, offset))
        into.write(reply.payload)
        offset += len(reply.payload)
        eof = reply.body.eof
    into.flush()
    return offset


def _sync_directory(directory: "Path") -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
