"""A target's directory: whose it is, that nobody else uses it, and how the last run ended.

::

    target.json          whose it is: cluster and target id; written once, when the directory is initialised
    state.json           how the last run ended: boot id, clean or not, why it failed
    scrub.json           how far verifying everything is; may be missing
    lock                 held while a server uses the directory
    segments/            see segments.py
    index/               see index.py

The json files are one line of JSON and one line with the xxh3-64 of it in hex. A new version is written beside the
old one, synced, renamed over it, and the directory is synced: a crash in any gap leaves the old version or the new.

The rule about ``state.json``: before anything is changed it says "not clean" on disk; "clean" is written only after
data and index are on disk. A failed disk is recorded there, and the target stays out of service over restarts until a
person has looked: deleting the file clears the mark and has the index rebuilt with every hash checked.
"""

import errno
from typing import Final, NoReturn, TypeVar

import msgspec
import xxhash

from shoalfs.chunkserver.disk import Disk
from shoalfs.transport.errors import UserError

FORMAT: Final = 1
_MAGIC: Final = "shoalfs target"
_TARGET_FILE: Final = "target.json"
_STATE_FILE: Final = "state.json"
_SCRUB_FILE: Final = "scrub.json"
_LOCK_FILE: Final = "lock"
_FILE_BYTES_MAX: Final = 4096
_FRESH: Final = frozenset({_LOCK_FILE, _TARGET_FILE + ".new", "lost+found"})  # what an unused directory may hold


class TargetInUse(UserError):
    """Somebody has the directory: another server, or a thread of one that ended, which hangs in a call to its disk."""


class TargetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``cluster_id`` and ``uuid``: 16 bytes in hex."""

    magic: str
    format: int
    cluster_id: str
    uuid: str


class StateFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``failed``: why the target went out of service; empty if it did not."""

    boot_id: str
    clean: bool
    failed: str = ""


class ScrubFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far verifying everything is. ``asked_for``: an operator waits for the round; ``requested_ns``: the newest
    request that was heeded. ``after``: the last chunk that was verified; ``chunks``, ``bytes``, ``damaged``: so far."""

    is_running: bool = False
    asked_for: bool = False
    requested_ns: int = 0
    began_ns: int = 0
    finished_ns: int = 0
    after: int = 0
    chunks: int = 0
    bytes: int = 0
    damaged: int = 0


_S = TypeVar("_S", bound=msgspec.Struct)


def target_in(disk: Disk, path: str) -> TargetFile | None:
    """What the directory at ``path`` says that it is, None if it was never initialised. Raises UserError, OSError."""
    try:
        names = disk.list_dir(path)
    except FileNotFoundError:
        return None
    return read_target_file(disk, path) if _TARGET_FILE in names else None


def cluster_of(disk: Disk, path: str) -> bytes | None:
    """The cluster that the directory at ``path`` belongs to, None if it was never initialised. Raises UserError."""
    found = target_in(disk, path)
    return None if found is None else bytes.fromhex(found.cluster_id)


class TargetDirectory:
    """A directory in use by this server: the lock is held until :meth:`close`."""

    def __init__(self, disk: Disk, path: str, *, cluster_id: bytes, fresh_uuid: bytes) -> None:
        """Open the directory, or make it a target of ``cluster_id`` with ``fresh_uuid`` if it is empty.

        Raises UserError: of another cluster, not empty and no target, damaged, of a newer format, or in use.
        """
        self._disk = disk
        self.path = path
        self.segments_path = f"{path}/segments"
        self.index_path = f"{path}/index"
        disk.make_dirs(path)
        foreign = set(disk.list_dir(path)) - _FRESH
        if foreign and _TARGET_FILE not in foreign:
            raise UserError(
                f"{path} is not empty and is no target of shoalfs (found {min(foreign)!r}): use an empty directory"
            )
        self._lock_fd = disk.open(f"{path}/{_LOCK_FILE}", create=True)
        try:
            if not disk.lock(self._lock_fd):
                raise TargetInUse(f"{path} is in use by another chunkserver: stop that one or use another directory")
            if _TARGET_FILE not in foreign:
                fresh = TargetFile(_MAGIC, FORMAT, cluster_id.hex(), fresh_uuid.hex())
                _write_file(disk, path, _TARGET_FILE, fresh)
            target = read_target_file(disk, path)
            if target.cluster_id != cluster_id.hex():
                raise UserError(
                    f"{path} belongs to cluster {target.cluster_id}, not to {cluster_id.hex()}: use another directory"
                )
            disk.make_dirs(self.segments_path)
            disk.sync_dir(path)
        except BaseException:
            disk.close(self._lock_fd)
            raise
        self.uuid = bytes.fromhex(target.uuid)

    def read_state(self) -> StateFile | None:
        """How the last run ended; None if that is unknown: then nothing may be taken for granted."""
        try:
            return _read_file(self._disk, self.path, _STATE_FILE, StateFile)
        except (FileNotFoundError, ValueError):
            return None

    def write_state(self, *, clean: bool, failed: str = "") -> None:
        """Durable when it returns. Raises OSError."""
        _write_file(self._disk, self.path, _STATE_FILE, StateFile(self._disk.boot_id(), clean, failed))

    def read_scrub(self) -> ScrubFile:
        """As it was written last; if that is not known, nothing was verified."""
        try:
            return _read_file(self._disk, self.path, _SCRUB_FILE, ScrubFile)
        except (FileNotFoundError, ValueError):
            return ScrubFile()

    def write_scrub(self, scrub: ScrubFile) -> None:
        """Durable when it returns. Raises OSError."""
        _write_file(self._disk, self.path, _SCRUB_FILE, scrub)

    def close(self) -> None:
        self._disk.close(self._lock_fd)


def read_target_file(disk: Disk, path: str) -> TargetFile:
    def refuse(why: str) -> NoReturn:
        raise UserError(f"{path}/{_TARGET_FILE} {why}: restore the file or start with an empty directory")

    try:
        target = _read_file(disk, path, _TARGET_FILE, TargetFile)
    except ValueError as error:
        refuse(f"is damaged ({error})")
    if target.magic != _MAGIC or len(target.cluster_id) != 32 or len(target.uuid) != 32:
        refuse("is no target's")
    if target.format != FORMAT:
        raise UserError(f"{path} has format {target.format}, this program reads format {FORMAT}: upgrade it")
    return target


def _read_file(disk: Disk, directory: str, name: str, kind: type[_S]) -> _S:
    """Raises FileNotFoundError, and ValueError if the contents do not match their checksum or schema."""
    fd = disk.open(f"{directory}/{name}")
    try:
        buffer = bytearray(_FILE_BYTES_MAX)
        data = bytes(buffer[: disk.preadv(fd, [memoryview(buffer)], 0)])
    finally:
        disk.close(fd)
    line, _, checksum = data.partition(b"\n")
    if checksum.strip() != xxhash.xxh3_64_hexdigest(line).encode():
        raise ValueError("checksum")
    return msgspec.json.decode(line, type=kind)  # its errors are ValueErrors


def _write_file(disk: Disk, directory: str, name: str, value: msgspec.Struct) -> None:
    line = msgspec.json.encode(value)
    data = line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode() + b"\n"
    if len(data) > _FILE_BYTES_MAX:
        raise OSError(errno.EFBIG, "state file")
    beside = f"{directory}/{name}.new"
    fd = disk.open(beside, create=True)
    try:
        disk.truncate(fd, 0)
        disk.pwritev(fd, [data], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.rename(beside, f"{directory}/{name}")
    disk.sync_dir(directory)
