"""Damage to the files of a target whose chunkserver does not run."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from shoalfs.chunkserver import record
from shoalfs.transport.checksum import block_hashes, chunk_hash
from shoalfs.transport.errors import ChunkCorrupt

PAGE = 4096


class Disk:
    """One target directory, of whose segments the largest is damaged."""

    def __init__(self, path: Path):
        self.path = path
        self.segment = max((path / "segments").iterdir(), key=lambda segment: segment.stat().st_size)

    def records(self):
        """Live records of that segment, in the order in which they lie."""
        data = self.segment.read_bytes()
        cluster_id = bytes.fromhex(self._cluster())
        found = []
        for at in range(0, len(data), PAGE):
            try:
                number = int(self.segment.name.split(".")[0])
                header = record.decode(data[at : at + PAGE], segment=number, position_bytes=at, cluster_id=cluster_id)
            except ChunkCorrupt:
                continue
            if header.state is record.State.LIVE:
                found.append(header)
        return found

    def _cluster(self) -> str:
        return json.loads((self.path / "target.json").read_text().splitlines()[0])["cluster_id"]

    def read(self, at, length):
        with self.segment.open("rb") as file:
            return os.pread(file.fileno(), length, at)

    def write(self, at, data):
        with self.segment.open("r+b") as file:
            os.pwrite(file.fileno(), data, at)

    def flip(self, at):
        self.write(at, bytes([self.read(at, 1)[0] ^ 0x10]))

    def data_of(self, header):
        return header.position_bytes + header.data_offset

    def rescan(self):
        """The next start reads everything, as after a disk was checked."""
        (self.path / "state.json").unlink()

    def drop_index(self):
        shutil.rmtree(self.path / "index")

    def rewrite_header(self, header, **fields):
        self.write(header.position_bytes, record.encode(replace(header, **fields)))

    def rewrite(self, header, data):
        """Other bytes under the same id, valid in themselves."""
        hashes = block_hashes([data])
        new = replace(header, chunk_bytes=len(data), chunk_hash=chunk_hash(hashes))
        assert new.record_bytes == header.record_bytes
        self.write(header.position_bytes, record.head(new, hashes) + data)

    def append_copy(self, header):
        """The same chunk once more, at the end."""
        end = self.segment.stat().st_size
        whole = self.read(header.position_bytes, header.record_bytes)
        self.write(end, record.encode(replace(header, position_bytes=end)) + whole[record.HEADER_BYTES :])
