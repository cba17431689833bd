"""Random reads, writes, truncations, holes, copies, maps and reopenings of one file, each compared with a buffer in
memory; on one mount, or each on one of several mounts of the same file.

    python tests/harness/exerciser.py FILE [OPERATIONS] [SEED]

A difference is an AssertionError that names the operation; the same seed does the same again.
"""

import errno
import mmap
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.libc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    give_name,
)

SIZE_BYTES_MAX = 6_000_000
_LENGTHS = (1, 100, 4_096, 70_000, 300_000, 1_500_000)
_OFTEN = (
    "write", "read", "truncate", "read_map", "write_map", "reopen", "read_closed", "sync", "append", "punch", "zero",
    "allocate", "copy_within", "holes",
)  # fmt: skip
_SELDOM = ("copy_from", "replace")  # these make and remove a second file: each takes as long as ten others


def swarm(seed: int) -> dict[str, int]:
    """Weights of this seed's own, by which some operations are made often and others hardly ever or not at all. Evenly
    mixed operations undo each other: a long row of appends, or of holes without a truncation, is then never made
    ("swarm testing", Groce and others, 2012)."""
    chance = random.Random(f"weights {seed}")
    weights = {name: chance.choice((0, 4, 8, 16)) for name in _OFTEN}
    weights |= {name: chance.choice((0, 1, 2)) for name in _SELDOM}
    return weights | {"write": 8, "read": 8}


class Exerciser:
    """``run`` does the operations; the file is compared as a whole at the end.

    ``elsewhere`` are paths of the same file on other mounts: each operation is made on one of them all, by chance. What
    was stored into a mapping is then synced always, for only that makes it seen elsewhere. The file stays below
    ``size_bytes_max``. ``weights`` are how often operations are made, by their names; 1 for those not named.
    """

    def __init__(
        self,
        path: str,
        seed: int,
        elsewhere: Sequence[str] = (),
        size_bytes_max: int = SIZE_BYTES_MAX,
        weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._paths = [path, *elsewhere]
        self._size_bytes_max = size_bytes_max
        self._lengths = [length for length in _LENGTHS if length <= size_bytes_max // 4]
        self._chance = random.Random(seed)
        self._shadow = bytearray()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
        self._fds = [os.open(each, os.O_RDWR) for each in self._paths]
        self._here = 0  # the mount of the operation under way
        self._operations: list[Callable[[], None]] = [
            *[self.write] * 3, *[self.read] * 3, self.truncate, self.read_map, self.write_map, self.reopen, self.sync,
            self.append, self.punch, self.zero, self.allocate, self.copy_within, self.copy_from, self.holes,
            self.replace, self.read_closed,
        ]  # fmt: skip
        self._weights = [weights.get(operation.__name__, 1) for operation in self._operations]

    def run(self, operations: int) -> None:
        for number in range(operations):
            (operation,) = self._chance.choices(self._operations, self._weights)
            self._here = self._chance.randrange(len(self._fds))
            try:
                operation()
                assert os.fstat(self._fd).st_size == len(self._shadow), (os.fstat(self._fd).st_size, len(self._shadow))
            except AssertionError as error:
                raise AssertionError(f"operation {number}, {operation.__name__} at {self._path}: {error}") from error
        for fd in self._fds:
            os.close(fd)
        for path in self._paths:
            with open(path, "rb") as file:
                assert file.read() == bytes(self._shadow), f"the whole file at the end, {path}"

    @property
    def _fd(self) -> int:
        return self._fds[self._here]

    @property
    def _path(self) -> str:
        return self._paths[self._here]

    def write(self) -> None:
        offset, data = self._offset(), self._data()
        data = data[: self._size_bytes_max - offset]
        if data:
            assert os.pwrite(self._fd, data, offset) == len(data)
            self._shadow.extend(bytes(max(0, offset - len(self._shadow))))
            self._shadow[offset : offset + len(data)] = data

    def append(self) -> None:
        data = self._data()[: self._size_bytes_max - len(self._shadow)]
        os.lseek(self._fd, 0, os.SEEK_END)
        assert os.write(self._fd, data) == len(data)
        self._shadow.extend(data)

    def read(self) -> None:
        offset, length = self._offset(), self._length()
        self._same(os.pread(self._fd, length, offset), offset, length)

    def truncate(self) -> None:
        size = self._offset()
        os.ftruncate(self._fd, size)
        del self._shadow[size:]
        self._shadow.extend(bytes(size - len(self._shadow)))

    def read_map(self) -> None:
        self._look()
        if self._shadow:
            with mmap.mmap(self._fd, len(self._shadow), prot=mmap.PROT_READ) as mapped:
                offset, length = self._chance.randrange(len(self._shadow)), self._length()
                self._same(mapped[offset : offset + length], offset, length)

    def write_map(self) -> None:
        self._look()
        if self._shadow:
            with mmap.mmap(self._fd, len(self._shadow)) as mapped:
                offset = self._chance.randrange(len(self._shadow))
                data = self._data()[: min(70_000, len(self._shadow) - offset)]
                mapped[offset : offset + len(data)] = data
                self._shadow[offset : offset + len(data)] = data
                if self._chance.random() < 0.5 or len(self._fds) > 1:
                    mapped.flush()

    # --- fallocate, holes, copies, files without a name --------------------------------------------------------------

    def punch(self) -> None:
        offset, length = self._offset(), self._length()
        fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        self._clear(offset, min(length, len(self._shadow) - offset))

    def zero(self) -> None:
        offset, length = self._offset(), self._length()
        length = min(length, self._size_bytes_max - offset) or 1
        if self._chance.random() < 0.5:
            fallocate(self._fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)
            self._clear(offset, min(length, len(self._shadow) - offset))
        else:
            fallocate(self._fd, FALLOC_FL_ZERO_RANGE, offset, length)
            self._grow(offset + length)
            self._clear(offset, length)

    def allocate(self) -> None:
        offset, length = self._offset(), self._length()
        length = min(length, self._size_bytes_max - offset) or 1
        fallocate(self._fd, 0, offset, length)
        self._grow(offset + length)

    def copy_within(self) -> None:
        source, target, length = self._offset(), self._offset(), self._length()
        length = min(length, len(self._shadow) - source, abs(target - source), self._size_bytes_max - target)
        if length > 0:
            self._copy(self._fd, self._fd, source, target, length)
            self._put(target, self._shadow[source : source + length])

    def copy_from(self) -> None:
        """From another file, of which nothing is committed."""
        target, data = self._offset(), self._data()
        data = data[: self._size_bytes_max - target]
        if data:
            other = self._unnamed()
            assert os.write(other, data) == len(data)
            self._copy(other, self._fd, 0, target, len(data))
            os.close(other)
            self._put(target, data)

    def holes(self) -> None:
        """What lies before the data that is found is zeros, and data ends before the file does."""
        offset = self._offset()
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
            data = max(offset, len(self._shadow))
        else:
            hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            assert data < hole <= len(self._shadow), (data, hole)
        assert not any(self._shadow[offset:data]), f"data before {data}"

    def replace(self) -> None:
        """The file takes a new inode: made without a name, filled from the old one, named, and put in its place."""
        new = self._unnamed()
        self._copy(self._fd, new, 0, 0, len(self._shadow))
        give_name(new, Path(self._path + ".new"))
        os.rename(self._path + ".new", self._path)
        for fd in self._fds:
            os.close(fd)
        self._fds = [new if at == self._here else os.open(path, os.O_RDWR) for at, path in enumerate(self._paths)]

    def _unnamed(self) -> int:
        return os.open(os.path.dirname(self._path), os.O_TMPFILE | os.O_RDWR, 0o644)

    def _copy(self, source: int, target: int, start: int, to: int, length: int) -> None:
        done = 0
        self._look()
        while done < length:
            count = os.copy_file_range(source, target, length - done, start + done, to + done)
            assert count, f"nothing copied at {done} of {length}"
            done += count

    def _look(self) -> None:
        """Linux copies and maps no further than the size it knows: ask for one that has changed elsewhere."""
        os.fstat(self._fd)

    def _put(self, offset: int, data: bytes) -> None:
        self._grow(offset + len(data))
        self._shadow[offset : offset + len(data)] = data

    def _grow(self, size: int) -> None:
        self._shadow.extend(bytes(max(0, size - len(self._shadow))))

    def _clear(self, offset: int, length: int) -> None:
        if length > 0:
            self._shadow[offset : offset + length] = bytes(length)

    def reopen(self) -> None:
        os.close(self._fd)
        self._fds[self._here] = os.open(self._path, os.O_RDWR)

    def read_closed(self) -> None:
        """Nobody has it open, and it is opened for reading again and again: an open that need not ask anybody."""
        for fd in self._fds:
            os.close(fd)
        for _ in range(self._chance.randrange(1, 4)):
            fd = os.open(self._path, os.O_RDONLY)
            offset, length = self._offset(), self._length()
            if self._chance.random() < 0.7:
                self._same(os.pread(fd, length, offset), offset, length)
            assert os.fstat(fd).st_size == len(self._shadow), (os.fstat(fd).st_size, len(self._shadow))
            os.close(fd)
            if self._chance.random() < 0.3:
                time.sleep(0.05)  # the close is told
        self._fds = [os.open(path, os.O_RDWR) for path in self._paths]

    def sync(self) -> None:
        os.fsync(self._fd)

    def _offset(self) -> int:
        anywhere = self._chance.random() < 0.5
        return self._chance.randrange(self._size_bytes_max if anywhere else len(self._shadow) + 1)

    def _length(self) -> int:
        return self._chance.randrange(self._chance.choice(self._lengths)) + 1

    def _data(self) -> bytes:
        return self._chance.randbytes(self._length())

    def _same(self, got: bytes, offset: int, length: int) -> None:
        expected = bytes(self._shadow[offset : offset + length])
        if got != expected:
            at = next((i for i, pair in enumerate(zip(got, expected, strict=False)) if pair[0] != pair[1]), None)
            raise AssertionError(f"{length} at {offset}: got {len(got)} of {len(expected)}, first difference at {at}")


if __name__ == "__main__":
    count, seed = (int(argument) for argument in (*sys.argv[2:4], *("1000", "1")[len(sys.argv[2:4]) :]))
    Exerciser(os.path.abspath(sys.argv[1]), seed).run(count)
    print(f"{count} operations with seed {seed}: no difference")
