"""What a power loss leaves of the write that was under way: any of its sectors."""

import os
import random
from pathlib import Path

from shoalfs.mds.journal import Batch, encode_batch
from shoalfs.mds.journal_files import begin_segment

SECTOR = 512


def leave_torn(batch: Batch, directory: Path, chance: random.Random) -> str:
    """Put it on the disk, and say what was put."""
    if batch.segment is not None:
        path, header = batch.segment
        if chance.random() < 0.5:
            if chance.random() < 0.5:
                path.with_suffix(".tmp").write_bytes(b"half a hea")
            return "no segment"
        os.close(begin_segment(path, header))
    data = bytearray(encode_batch(batch))
    style = chance.choice(["nothing", "prefix", "sectors", "all"])
    if style == "nothing":
        return style
    if style == "prefix":
        del data[chance.randrange(len(data) + 1) :]
    if style == "sectors":
        for start in range(0, len(data), SECTOR):
            if chance.random() < 0.5:
                end = min(start + SECTOR, len(data))
                data[start:end] = bytes(end - start)
    newest = max(directory.glob("*.log"))
    with newest.open("ab") as file:
        file.write(data)
    return style
