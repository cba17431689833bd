"""The durable store: LMDB, written without syncing, made safe against power loss by a pinned checkpoint.

Why not let LMDB sync: one sync per batch would double the cost of each batch, and the replicated log is
synced anyway. So a commit only reaches the page cache (it survives the death of the process, not of the
machine), and the log is kept from the last checkpoint on. LMDB alone does not survive that: after a power cut
its file is a mixture of old and new pages. A *pinned checkpoint* makes one state of the file indestructible:

1. ``checkpoint()``, between two write transactions: open a read transaction at the last committed state T and
   keep it (LMDB then never reuses a page of T), and copy the two meta pages, which lead to T.
2. ``Checkpoint.write()``, in a thread, while the service goes on writing: sync the data file. Now all pages
   of T are on disk; later writes go to other pages, except for the meta pages.
3. Write the saved meta pages, the boot id and the applied index of T to ``checkpoint.new`` and sync it.
4. Rename it over ``checkpoint`` and sync the directory.
5. Release the previous checkpoint's pin.

A crash before 4 is on disk leaves the previous checkpoint, whose pages are still pinned; a crash after it the
new one. Opening after the machine was down (the boot id differs) puts the saved meta pages back, which makes
the file exactly T again whatever else was written or lost, and the log is replayed from T's applied index.
Putting back is repeatable: the boot id in ``checkpoint`` changes only with the next checkpoint, taken before
the first write. When only the process died (same boot id) the file is whole and is used as it is.

A fresh directory: the data file without ``checkpoint`` was never written to, because opening ends with a
checkpoint; it is made anew. Anything else that does not fit together is refused with StorageFailed.

Known doubts: a disk that is pulled and put back within one boot looks like a clean restart. Readers in other
processes must not keep a transaction open for long, because it pins pages as a checkpoint does.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import lmdb
import msgspec

from shoalfs.mds import keys, meta_page, records
from shoalfs.mds.seal import SEAL_BYTES, seal, unseal
from shoalfs.mds.txn import ReadTxn, Txn
from shoalfs.transport.errors import DamagedRecord, StorageFailed, UserError
from shoalfs.transport.limits import XATTR_VALUE_BYTES_MAX
from shoalfs.transport.method import Message

log = logging.getLogger("shoal.mds.store")

MAP_BYTES: Final = 1 << 40  # address space only; LMDB cannot grow it while running
READERS_MAX: Final = 126  # transactions open at one time, over all processes
_KEY_BYTES_MAX: Final = 511
_VALUE_BYTES_MAX: Final = XATTR_VALUE_BYTES_MAX + SEAL_BYTES + 1024
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
DATA_FILE: Final = "data.mdb"
_CHECKPOINT: Final = "checkpoint"
_MAGIC: Final = b"shoalchk"
# An LMDB file without any row has only its two meta pages, of the machine's page size.
_UNUSED_BYTES_MAX: Final = 2 * os.sysconf("SC_PAGESIZE")


class SavedMeta(Message, frozen=True):
    """Content of the file ``checkpoint``, sealed under the key ``shoalchk``."""

    boot_id: str
    applied: int
    meta_pages: bytes


class LmdbTxn:
    """The Txn port over an LMDB transaction. Used by one thread, within its ``with`` block."""

    decoded: Final = None

    def __init__(self, txn: "lmdb.Transaction[bytes]") -> None:
        self._txn = txn

    def get(self, key: bytes) -> bytes | None:
        try:
            stored = self._txn.get(key)
        except lmdb.Error as error:
            raise _failed("read from", error) from error
        return None if stored is None else unseal(key, stored)

    def range(self, first: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._txn.cursor() as cursor:
                if not reverse:
                    if not cursor.set_range(first):
                        return
                    for key, stored in cursor.iternext():
                        if key >= end:
                            return
                        yield key, unseal(key, stored)
                elif cursor.prev() if cursor.set_range(end) else cursor.last():
                    for key, stored in cursor.iterprev():
                        if key < first:
                            return
                        yield key, unseal(key, stored)
        except lmdb.Error as error:
            raise _failed("read from", error) from error

    def put(self, key: bytes, value: bytes) -> None:
        assert 0 < len(key) <= _KEY_BYTES_MAX, key
        assert len(value) <= _VALUE_BYTES_MAX, (key, len(value))
        try:
            self._txn.put(key, seal(key, value))
        except lmdb.Error as error:
            raise _failed("write to", error) from error

    def put_record(self, key: bytes, record: Any, encode: Callable[[Any], bytes]) -> None:
        self.put(key, encode(record))

    def delete(self, key: bytes) -> bool:
        try:
            found: bool = self._txn.delete(key)
        except lmdb.Error as error:
            raise _failed("write to", error) from error
        return found


class LmdbView:
    """A read transaction. A class and not a generator: this is a fifth of what a lookup costs."""

    __slots__ = ("_env", "_txn")

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def __enter__(self) -> LmdbTxn:
        try:
            self._txn = self._env.begin(buffers=False)
        except lmdb.Error as error:
            raise _failed("read from", error) from error
        return LmdbTxn(self._txn)

    def __exit__(self, *_: object) -> None:
        self._txn.abort()


class Checkpoint:
    """One checkpoint in the making. Made by :meth:`LmdbStore.checkpoint`."""

    def __init__(self, store: "LmdbStore", pin: "lmdb.Transaction[bytes]", saved: SavedMeta) -> None:
        self._store = store
        self.pin = pin
        self.saved = saved

    def write(self) -> None:
        """Make it durable: the slow part, to be called once, in any thread. Raises StorageFailed."""
        self._store.write_checkpoint(self)


class LmdbStore:
    """The rows of one metadata node. One process at a time; one thread writes.

    Invariant: the pages of the state in the file ``checkpoint`` are pinned by ``_pin`` whenever a write
    transaction runs.
    """

    def __init__(self, path: str, env: lmdb.Environment, directory: int, boot_id: str) -> None:
        self._path = path
        self._env = env
        self._directory = directory  # descriptor, holds the lock on the directory
        self._boot_id = boot_id
        self._pin: lmdb.Transaction[bytes] | None = None
        self._durable = 0
        self._checkpointing = False
        self._writing = False

    @classmethod
    def open(cls, path: str, *, boot_id: str | None = None) -> "LmdbStore":
        """Open or create the store in the directory ``path``, in the state of its last commit or checkpoint.

        Raises UserError if the directory cannot be used or another process has it, StorageFailed if its files
        are damaged. ``boot_id`` is the machine's own unless a test says otherwise.
        """
        return cls._open(path, boot_id or _machine_boot_id(), _repair)

    @classmethod
    def adopt(cls, path: str) -> "LmdbStore":
        """Make a store of the copy that :meth:`copy_to` left in ``path``: with a checkpoint, durable. Raises as
        :meth:`open`."""
        return cls._open(path, _machine_boot_id(), lambda path, *_: _check_copy(path))

    @classmethod
    def _open(cls, path: str, boot: str, prepare: Callable[[str, int, str], None]) -> "LmdbStore":
        directory = _lock_directory(path)
        try:
            prepare(path, directory, boot)
            env = _open_environment(path)
        except BaseException:
            os.close(directory)
            raise
        store = cls(path, env, directory, boot)
        try:
            store.checkpoint().write()
        except BaseException:
            env.close()
            os.close(directory)
            raise
        return store

    def read(self) -> "LmdbView":
        """A consistent view of the last committed state, for as long as the ``with`` block runs."""
        return LmdbView(self._env)

    @contextmanager
    def write(self) -> Iterator[Txn]:
        """A write transaction: committed at the end of the block, undone if the block raises.

        Raises StorageFailed when the disk is full or failing; nothing of the transaction is there then.
        """
        assert not self._writing, "one writer at a time"
        assert self._pin is not None, "no write before the first checkpoint"
        self._writing = True
        try:
            with self._env.begin(write=True) as txn:
                yield LmdbTxn(txn)
        except lmdb.Error as error:
            # LMDB calls a short write, which is how a disk gets full, an I/O error: say how much is free.
            raise StorageFailed(f"{_failed('write to', error)}: {self._free()}") from error
        finally:
            self._writing = False

    def checkpoint(self) -> Checkpoint:
        """Begin a checkpoint of the state as of now; quick. One at a time, not inside a write transaction.

        Its ``write`` makes it durable. Until then, and if ``write`` fails, the previous one counts.
        """
        assert not self._writing, "a checkpoint lies between write transactions"
        assert not self._checkpointing, "one checkpoint at a time"
        self._checkpointing = True
        pin = self._env.begin()
        meta_pages = _read_meta_pages(os.path.join(self._path, DATA_FILE))
        assert meta_page.newest(meta_pages, _file_bytes(self._path)).txn == pin.id(), "meta pages moved on"
        applied = records.APPLIED.load(LmdbTxn(pin), keys.APPLIED)
        saved = SavedMeta(self._boot_id, applied.index if applied else 0, meta_pages)
        return Checkpoint(self, pin, saved)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Steps 2 to 5 of the module's description."""
        try:
            self._env.sync(True)
            body = msgspec.msgpack.encode(checkpoint.saved)
            _replace_file(self._path, self._directory, _CHECKPOINT, _MAGIC + seal(_MAGIC, body))
        except (lmdb.Error, OSError) as error:
            checkpoint.pin.abort()
            raise StorageFailed(f"{_failed('sync', error)}: {self._free()}") from error
        else:
            previous, self._pin = self._pin, checkpoint.pin
            self._durable = checkpoint.saved.applied
            if previous is not None:
                previous.abort()
        finally:
            self._checkpointing = False

    def durable_applied(self) -> int:
        """The applied index that a power loss now would leave."""
        return self._durable

    def size_bytes(self) -> int:
        """Size of the data file; it grows between checkpoints and never shrinks."""
        return _file_bytes(self._path)

    def forget_dead_readers(self) -> None:
        """A process that was killed while it read would keep the pages of what it saw in use for ever."""
        self._env.reader_check()

    def copy_to(self, directory: str) -> records.Applied:
        """Write a compact copy of the last committed state to ``data.mdb`` in an empty directory, not synced. Returns
        the last entry applied in it.

        Slow; may run in any thread, while another one writes. Raises StorageFailed, which is about the copy only.
        """
        try:
            self._env.copy(directory, compact=True)
            with lmdb.open(directory, map_size=MAP_BYTES, readonly=True, lock=False) as copy, copy.begin() as txn:
                return records.APPLIED.require(LmdbTxn(txn), keys.APPLIED)
        except (lmdb.Error, OSError) as error:
            raise StorageFailed(f"cannot copy the metadata store to {directory}: {error}") from error

    def _free(self) -> str:
        space = os.statvfs(self._path)
        return f"{self._path} has {space.f_bavail * space.f_frsize} bytes free"

    def close(self) -> None:
        """Take a last checkpoint and let go of the directory. No transaction may be open."""
        try:
            self.checkpoint().write()
            assert self._pin is not None
            self._pin.abort()
        finally:
            self._env.close()
            os.close(self._directory)


@contextmanager
def read_beside(path: str) -> Iterator[ReadTxn]:
    """One consistent view of the store in ``path``, which another process has open and goes on changing: the pages of
    what is seen stay in use until the block ends, or :meth:`LmdbStore.forget_dead_readers` finds this process gone.

    Raises StorageFailed."""
    try:
        env = lmdb.open(path, map_size=MAP_BYTES, readonly=True, create=False, max_readers=READERS_MAX)
    except lmdb.Error as error:
        raise _failed("open", error) from error
    with env, LmdbView(env) as txn:
        yield txn


# --- opening ------------------------------------------------------------------------------------------------


def _machine_boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def _lock_directory(path: str) -> int:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot use {path} for metadata: {error.strerror}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(directory)
        raise UserError(f"{path} is in use by another metadata service") from error
    return directory


def _repair(path: str, directory: int, boot_id: str) -> None:
    """Bring the files to a state that LMDB can open, or raise StorageFailed. See the module's description."""
    data = os.path.join(path, DATA_FILE)
    saved = _load_checkpoint(os.path.join(path, _CHECKPOINT))
    if saved is None:
        if os.path.exists(data):
            _discard_unused(data, directory)
        return
    if not os.path.exists(data):
        raise StorageFailed(f"{path} has a checkpoint but no {DATA_FILE}: restore the directory from another node")
    meta = meta_page.newest(saved.meta_pages, _file_bytes(path))
    if saved.boot_id != boot_id:
        log.warning("the machine was restarted: going back to the checkpoint at entry %d", saved.applied)
        _write_meta_pages(data, saved.meta_pages[: 2 * meta.page_bytes])
    meta_page.newest(_read_meta_pages(data), _file_bytes(path))


def _check_copy(path: str) -> None:
    """LMDB trusts the file that it opens, so look first. Raises StorageFailed."""
    if os.path.exists(os.path.join(path, _CHECKPOINT)):
        raise StorageFailed(f"{path} holds a store, not a copy of one")
    meta_page.newest(_read_meta_pages(os.path.join(path, DATA_FILE)), _file_bytes(path))


def _load_checkpoint(path: str) -> SavedMeta | None:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return None
    try:
        if not content.startswith(_MAGIC):
            raise StorageFailed(f"{path} is not a checkpoint")
        return msgspec.msgpack.decode(unseal(_MAGIC, content[len(_MAGIC) :]), type=SavedMeta)
    except (DamagedRecord, msgspec.DecodeError) as error:
        raise StorageFailed(f"{path} is damaged: restore the directory from another node") from error


def _discard_unused(data: str, directory: int) -> None:
    """Remove a data file that was made but never checkpointed, hence never written to."""
    size_bytes = os.stat(data).st_size
    if size_bytes > _UNUSED_BYTES_MAX:
        raise StorageFailed(f"{data} has {size_bytes} bytes but no checkpoint beside it")
    os.unlink(data)
    os.fsync(directory)


def _open_environment(path: str) -> lmdb.Environment:
    try:
        env = lmdb.open(
            path,
            map_size=MAP_BYTES,
            sync=False,
            metasync=False,
            max_readers=READERS_MAX,
            max_spare_txns=4,
            mode=0o600,
        )
        env.reader_check()  # a killed reader would pin its pages for ever
        return env
    except lmdb.Error as error:
        raise _failed("open", error) from error


# --- files --------------------------------------------------------------------------------------------------


def _file_bytes(path: str) -> int:
    return os.stat(os.path.join(path, DATA_FILE)).st_size


def _read_meta_pages(data: str) -> bytes:
    with open(data, "rb") as file:
        first = file.read(meta_page.PAGE_BYTES_MIN)
        page_bytes = meta_page.parse(first).page_bytes
        return first + file.read(2 * page_bytes - len(first))


def _write_meta_pages(data: str, pages: bytes) -> None:
    with open(data, "r+b") as file:
        file.write(pages)
        file.flush()
        os.fsync(file.fileno())


def _replace_file(path: str, directory: int, name: str, content: bytes) -> None:
    """Have ``content`` in ``name``, whole and durable, or leave the old file: write aside, sync, rename,
    sync."""
    aside = os.path.join(path, name + ".new")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, os.path.join(path, name))
    os.fsync(directory)


def _failed(verb: str, error: Exception) -> StorageFailed:
    if isinstance(error, lmdb.MapFullError):
        return StorageFailed(f"the metadata store has reached its largest size, {MAP_BYTES} bytes")
    return StorageFailed(f"cannot {verb} the metadata store: {error}")
