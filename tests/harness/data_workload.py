"""A program that overwrites, fsyncs and reads back, and knows of every block what it may be.

``python data_workload.py TREE REPORT STOP SEED`` works on a mount until STOP exists, then verifies everything and
writes REPORT. A block is 4 KiB and says which file, place and version it is; the rest of it follows from that. What it
may be: the version of the last fsync that succeeded, or any that was written since. So each block that is read is
right, *lost* (an older version, or no answer, of what an fsync promised), or *wrong* (bytes that were never written
there).

Errors are no failures of this program: a write that fails may have happened, an fsync that fails promises nothing.
After one, everything that is not promised is written again, as a program would that wants its bytes to be kept. A mount
that dies is waited for, and then the same is done for all files: the next mount knows nothing of what that one had.
"""

import errno
import hashlib
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path

BLOCK = 4096
FILES = 6
BLOCKS = 1536  # 6 MiB each
_HEAD = struct.Struct("<IIQ")
_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESTALE}
_PATIENCE_S = 120.0
STALL_S, STALLS_MAX = 1.0, 10_000


def block(file: int, at: int, version: int) -> bytes:
    if version == 0:
        return bytes(BLOCK)
    head = _HEAD.pack(file, at, version)
    return head + hashlib.shake_128(head).digest(BLOCK - len(head))


def blocks(fd: int, at: int, count: int) -> bytes:
    """So many blocks; zeros where the file has ended. A read that is short for another reason (the next byte cannot be
    read) is gone on with, and raises what it meets."""
    data = b""
    while len(data) < count * BLOCK:
        more = os.pread(fd, count * BLOCK - len(data), at * BLOCK + len(data))
        if not more:
            break
        data += more
    return data.ljust(count * BLOCK, b"\0")


class Workload:
    def __init__(self, tree: Path, seed: int) -> None:
        self.tree = tree
        self.chance = random.Random(seed)
        self.version = 0
        self.may_be = [[{0} for _ in range(BLOCKS)] for _ in range(FILES)]
        self.open: dict[int, int] = {}
        self.doubted: set[int] = set()  # files of which an fsync alone says nothing
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.stalls_s: list[float] = []  # of operations that took longer than STALL_S; the first STALLS_MAX
        self.longest_s = 0.0

    # --- work --------------------------------------------------------------------------------------------------------
    def step(self) -> None:
        file = self.chance.randrange(FILES)
        kind = self.chance.choices((self.write, self.sync, self.read), (5, 3, 3))[0]
        began = time.monotonic()
        try:
            kind(file)
        except OSError as error:
            self.counts[f"{kind.__name__} {errno.errorcode.get(error.errno or 0, '?')}"] += 1
            self.close(file)
            if error.errno in _GONE:
                self.wait_mount()
            elif kind is not self.read:
                self.doubted.add(file)
            while self.doubted:
                self.write_again(self.doubted.pop())
        took = time.monotonic() - began
        self.longest_s = max(self.longest_s, took)
        if took > STALL_S and len(self.stalls_s) < STALLS_MAX:
            self.stalls_s.append(took)

    def fd(self, file: int) -> int:
        if file not in self.open:
            self.open[file] = os.open(self.tree / f"f{file}", os.O_RDWR | os.O_CREAT, 0o600)
        return self.open[file]

    def close(self, file: int) -> None:
        fd = self.open.pop(file, None)
        if fd is not None:
            try:
                os.close(fd)
            except OSError as error:  # the bytes are as unpromised as before
                self.counts[f"close {errno.errorcode.get(error.errno or 0, '?')}"] += 1

    def write(self, file: int) -> None:
        length = self.chance.choice((1, 3, 16, 100, 256))
        self._write(file, self.chance.randrange(BLOCKS - length + 1), length)

    def _write(self, file: int, at: int, length: int) -> None:
        self.version += 1
        for number in range(at, at + length):
            self.may_be[file][number].add(self.version)
        data = b"".join(block(file, number, self.version) for number in range(at, at + length))
        fd, done = self.fd(file), 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], at * BLOCK + done)
        self.counts["writes"] += 1

    def sync(self, file: int) -> None:
        newest = [max(versions) for versions in self.may_be[file]]
        os.fsync(self.fd(file))
        self.may_be[file] = [{version} for version in newest]
        self.counts["fsyncs"] += 1

    def write_again(self, file: int) -> None:
        """What may be one or the other is written anew, until an fsync makes it certain."""
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            try:
                for at, versions in enumerate(self.may_be[file]):
                    if len(versions) > 1:
                        self._write(file, at, 1)
                self.sync(file)
                self.counts["written again"] += 1
                return
            except OSError as error:
                self.counts[f"again {errno.errorcode.get(error.errno or 0, '?')}"] += 1
                self.close(file)
                if error.errno in _GONE:
                    self.wait_mount()
                    self.doubted.discard(file)
                time.sleep(1.0)
        self.problems.append(f"file {file} could not be synced for {_PATIENCE_S:g} s")

    def read(self, file: int) -> None:
        length = self.chance.choice((1, 8, 64, 256))
        at = self.chance.randrange(BLOCKS - length + 1)
        fd = self.fd(file)
        os.posix_fadvise(fd, at * BLOCK, length * BLOCK, os.POSIX_FADV_DONTNEED)
        self.judge(file, at, blocks(fd, at, length))
        self.counts["reads"] += 1

    def judge(self, file: int, at: int, data: bytes) -> None:
        for number in range(len(data) // BLOCK):
            found = data[number * BLOCK : (number + 1) * BLOCK]
            allowed = self.may_be[file][at + number]
            said_file, said_at, version = _HEAD.unpack_from(found)
            if not any(found[: _HEAD.size]):
                said_file, said_at, version = file, at + number, 0
            whole = (said_file, said_at) == (file, at + number) and found == block(file, at + number, version)
            if not whole:
                self.counts["wrong"] += 1
                self.problems.append(f"file {file} block {at + number}: bytes that were never written there")
            elif version not in allowed:
                self.counts["lost"] += 1
                self.problems.append(f"file {file} block {at + number}: version {version}, not of {sorted(allowed)}")
            self.counts["blocks verified"] += 1

    def wait_mount(self) -> None:
        for file in list(self.open):
            self.close(file)
        give_up = time.monotonic() + _PATIENCE_S
        while time.monotonic() < give_up:
            try:
                if (self.tree / "here").exists():
                    self.doubted.update(range(FILES))
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit("the mount did not come back")

    # --- the end -----------------------------------------------------------------------------------------------------
    def verify(self) -> None:
        """All blocks of all files, each by itself where a file cannot be read as a whole."""
        for file in range(FILES):
            for at in range(0, BLOCKS, 64):
                try:
                    self.judge(file, at, blocks(self.fd(file), at, 64))
                except OSError:
                    for number in range(at, at + 64):
                        self._verify_one(file, number)
            self.close(file)

    def _verify_one(self, file: int, number: int) -> None:
        try:
            self.judge(file, number, blocks(self.fd(file), number, 1))
        except OSError as error:
            self.counts["blocks unreadable"] += 1
            if len(self.may_be[file][number]) == 1:
                self.counts["lost"] += 1
                self.problems.append(f"file {file} block {number}: {error}")

    def report(self) -> dict[str, object]:
        problems = self.problems[:20]
        stalls = {"longest_s": self.longest_s, "stalls_s": self.stalls_s}
        return {"counts": dict(self.counts), "problems": problems, **stalls}


def main(tree: Path, report: Path, stop: Path, seed: int) -> None:
    (tree / "here").touch()
    workload = Workload(tree, seed)
    told = 0.0
    while not stop.exists():
        workload.step()
        if time.monotonic() - told > 0.1:
            told = time.monotonic()
            _tell(report, workload.report() | {"finished": False})
    for file in range(FILES):
        try:
            workload.sync(file)
        except OSError:
            workload.close(file)
            workload.write_again(file)
        workload.close(file)
    # Nothing of it from the caches of this mount: the test takes it off and on again.
    _tell(report, workload.report() | {"finished": False, "synced": True})
    while stop.exists():
        time.sleep(0.05)
    workload.verify()
    _tell(report, workload.report() | {"finished": True})


def _tell(report: Path, what: dict[str, object]) -> None:
    beside = report.with_suffix(".new")
    beside.write_text(json.dumps(what))
    beside.rename(report)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
