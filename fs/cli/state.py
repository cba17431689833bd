"""The state directory of a one-machine cluster: where everything of it lies, and which processes run for it.

    STATE/cluster.json   how the cluster was made; its presence makes a directory a state directory
    STATE/run/*.json     one record per process
    STATE/run/*.session  what a mount leaves to the next one at its point (`fs/legacy.py`)
    STATE/conf/*.toml    the configuration of each process
    STATE/data/*/        metadata and chunks
    STATE/sock/*.sock    where the servers listen
    STATE/log/*.log      what they say
    STATE/lock           held by `up` and `down` while they change anything

Files are written beside and renamed. They are not synced: a record that a power cut leaves empty or lost
describes a process that the power cut ended. An empty cluster.json is answered with the remedy.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

import msgspec

from shoalfs.fs.cli.processes import Identity
from shoalfs.transport.errors import UserError

KINDS: Final = ("mds", "chunkserver", "mount")  # in the order in which they are started

_PARTS: Final = ("run", "conf", "data", "sock", "log")
T = TypeVar("T")


class ClusterRecord(msgspec.Struct, frozen=True):
    """What `up` made, and cannot change afterwards."""

    cluster_id: str  # 32 hex digits
    mds: int
    nodes: int
    replicas: int
    target_bytes: int  # size of each target: all targets share one disk, and together they have what it had free


class RunRecord(msgspec.Struct, frozen=True):
    """One process of the cluster. ``address`` is empty for a mount, ``point`` for a server."""

    name: str
    kind: str
    process: Identity
    address: str
    log: str
    point: str = ""


def default_path(environ: Mapping[str, str], euid: int) -> str:
    """Where state is kept when nobody says: as the XDG base directory specification has it, for root
    /var/lib."""
    if euid == 0:
        return "/var/lib/shoalfs"
    base = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/"), ".local", "state")
    return os.path.join(base, "shoalfs")


class StateDir:
    """One state directory. Nothing is created before :meth:`create`."""

    def __init__(self, path: str | None = None) -> None:
        self.path = os.path.abspath(path or default_path(os.environ, os.geteuid()))

    def create(self) -> None:
        """Make the directory and its parts; what is there already stays. Only its owner may look inside."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        for part in _PARTS:
            os.makedirs(os.path.join(self.path, part), mode=0o700, exist_ok=True)

    def at(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    def log(self, name: str) -> str:
        return self.at("log", f"{name}.log")

    def mount_log(self, point: str) -> str:
        """Of a mount that is no part of the cluster that `up` made."""
        return self.log(_name_of(point))

    def legacy(self, point: str) -> str:
        return self.at("run", f"{_name_of(point)}.session")

    @property
    def cluster(self) -> ClusterRecord | None:
        """How the cluster was made; None if nothing was made here. Raises UserError if that cannot be
        read."""
        return self._read(self.at("cluster.json"), ClusterRecord)

    def write_cluster(self, record: ClusterRecord) -> None:
        self._write(self.at("cluster.json"), record)

    def records(self) -> list[RunRecord]:
        """The processes that were started and not stopped, in the order of their start. They need not run."""
        try:
            names = sorted(os.listdir(self.at("run")))
        except FileNotFoundError:
            return []
        found = [self._read(self.at("run", name), RunRecord) for name in names if name.endswith(".json")]
        return sorted(
            (record for record in found if record is not None),
            key=lambda record: (KINDS.index(record.kind), record.name),
        )

    def write_record(self, record: RunRecord) -> None:
        self._write(self.at("run", f"{record.name}.json"), record)

    def remove_record(self, name: str) -> None:
        path = self.at("run", f"{name}.json")
        if os.path.exists(path):
            os.unlink(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for a change. Raises UserError if another command holds it."""
        fd = os.open(self.at("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"state: {self.path}: another `shoal up` or `shoal down` is at work: wait for it"
                ) from None
            yield
        finally:
            os.close(fd)

    def purge(self) -> None:
        """Remove everything that :meth:`create` and the processes made; the directory too, if it is empty
        then.

        cluster.json goes last: until then a purge that was cut short can be repeated.
        """
        for part in _PARTS:
            if os.path.isdir(self.at(part)):
                shutil.rmtree(self.at(part))
        for name in ("lock", "cluster.json"):
            if os.path.exists(self.at(name)):
                os.unlink(self.at(name))
        if not os.listdir(self.path):
            os.rmdir(self.path)

    def _read(self, path: str, kind: type[T]) -> T | None:
        try:
            with open(path, "rb") as file:
                return msgspec.json.decode(file.read(), type=kind)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise UserError(f"state: {path}: damaged ({error}): remove it") from error

    def _write(self, path: str, value: msgspec.Struct) -> None:
        beside = f"{path}.new"
        with open(beside, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value)))
        os.rename(beside, path)


def _name_of(point: str) -> str:
    """One name per mount point: its last part for people, a digest because these alone may be the same."""
    digest = hashlib.blake2b(point.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"mount-{os.path.basename(point)}-{digest}"
