"""The durable store: what a power cut, a killed process and damaged files leave."""

import errno
import os
import random
import shutil
import threading

import lmdb
import pytest

from harness.metadata import contents
from shoalfs.mds import meta_page
from shoalfs.mds import store as store_module
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import StorageFailed, UserError

PAGE = 4096


def change(store, rng, rounds=8, rows=60):
    """Random puts and deletes, some of them large enough for overflow pages."""
    for _ in range(rounds):
        with store.write() as txn:
            for _ in range(rows):
                key = b"k%04d" % rng.randrange(600)
                if rng.random() < 0.25:
                    txn.delete(key)
                else:
                    txn.put(key, rng.randbytes(rng.choice((10, 100, 100, 3000, 9000))))


def data_of(path):
    return (path / "data.mdb").read_bytes()


def after_power_cut(path, states, checkpoint, rng, tmp_path):
    """A directory as a power cut could leave it: each page as of any of the states since the last sync."""
    left = tmp_path / f"left{rng.random()}"
    left.mkdir()
    length = len(rng.choice(states))
    length = max(length, len(states[0]))
    with (left / "data.mdb").open("wb") as file:
        for start in range(0, length, PAGE):
            page = rng.choice(states)[start : start + PAGE]
            file.write(page.ljust(PAGE, b"\0"))
    (left / "checkpoint").write_bytes(checkpoint)
    return left


@pytest.mark.parametrize("seed", range(12))
def test_a_power_cut_leaves_exactly_the_checkpoint(tmp_path, seed):
    rng = random.Random(seed)
    store = LmdbStore.open(str(tmp_path / "store"), boot_id="first")
    change(store, rng)
    store.checkpoint().write()
    expected = contents(store)
    change(store, rng)
    store.checkpoint().write()  # the one before must not be needed any more
    expected = contents(store)
    checkpoint = (tmp_path / "store" / "checkpoint").read_bytes()
    states = [data_of(tmp_path / "store")]
    for _ in range(3):
        change(store, rng, rounds=4)
        states.append(data_of(tmp_path / "store"))
    pending = store.checkpoint()  # begun, never durable
    change(store, rng, rounds=4)
    states.append(data_of(tmp_path / "store"))
    for _ in range(3):
        left = after_power_cut(tmp_path / "store", states, checkpoint, rng, tmp_path)
        reopened = LmdbStore.open(str(left), boot_id="second")
        assert contents(reopened) == expected
        change(reopened, rng)  # and it can be written on
        reopened.close()
    pending.write()
    store.close()


def test_without_the_pin_the_model_finds_the_loss(tmp_path):
    """Control: the page-loss model above does break a store that does not pin."""
    broken = 0
    for seed in range(6):
        rng = random.Random(seed)
        path = tmp_path / f"store{seed}"
        store = LmdbStore.open(str(path), boot_id="first")
        change(store, rng)
        store.checkpoint().write()
        expected = contents(store)
        checkpoint = (path / "checkpoint").read_bytes()
        store._pin.abort()
        states = [data_of(path)]
        for _ in range(4):
            change(store, rng, rounds=4)
            states.append(data_of(path))
        # The last state whole: nothing is lost, but pages of the checkpoint were used again.
        left = after_power_cut(path, states[-1:], checkpoint, rng, tmp_path)
        store._pin = store._env.begin()
        store.close()
        file = bytearray(data_of(left))
        saved = store_module._load_checkpoint(str(left / "checkpoint")).meta_pages
        broken += any(
            page_of(states[0], number) != page_of(file, number)
            for number in range(2, len(states[0]) // PAGE)
            if number in live_pages(states[0], saved)
        )
        assert expected
    assert broken == 6


def page_of(data, number):
    return bytes(data[number * PAGE : (number + 1) * PAGE])


def live_pages(data, meta_pages):
    """Pages of the tree at the newest of the saved meta pages: branches, leaves and overflow runs."""
    pages = max((meta_pages[:PAGE], meta_pages[PAGE:]), key=lambda p: meta_page.parse(p).txn)
    root = int.from_bytes(pages[16 + 24 + 48 + 40 :][:8], "little")
    found, waiting = set(), [root]
    while waiting:
        number = waiting.pop()
        found.add(number)
        page = page_of(data, number)
        flags, lower = int.from_bytes(page[10:12], "little"), int.from_bytes(page[12:14], "little")
        for slot in range((lower - 16) // 2):
            node = int.from_bytes(page[16 + 2 * slot :][:2], "little")
            low, high, node_flags, key_bytes = (int.from_bytes(page[node + i :][:2], "little") for i in (0, 2, 4, 6))
            if flags & 0x01:
                waiting.append(low | high << 16 | node_flags << 32)
            elif node_flags & 0x01:
                first = int.from_bytes(page[node + 8 + key_bytes :][:8], "little")
                run = int.from_bytes(page_of(data, first)[12:16], "little")
                found |= set(range(first, first + run))
    return found


def test_a_killed_process_loses_nothing(tmp_path):
    path = str(tmp_path / "store")
    pid = os.fork()
    if pid == 0:
        store = LmdbStore.open(path, boot_id="same")
        with store.write() as txn:
            txn.put(b"a", b"after the checkpoint")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    store = LmdbStore.open(path, boot_id="same")
    assert contents(store) == {b"a": b"after the checkpoint"}
    store.close()


def test_the_same_death_with_a_reboot_goes_back_to_the_checkpoint(tmp_path):
    path = str(tmp_path / "store")
    pid = os.fork()
    if pid == 0:
        store = LmdbStore.open(path, boot_id="first")
        with store.write() as txn:
            txn.put(b"a", b"checkpointed")
        store.checkpoint().write()
        with store.write() as txn:
            txn.put(b"a", b"later")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    store = LmdbStore.open(path, boot_id="second")
    assert contents(store) == {b"a": b"checkpointed"}
    store.close()


def test_a_crash_while_going_back_is_repeated(tmp_path):
    """The boot id changes only with the next checkpoint, so an interrupted opening is begun anew."""
    path = str(tmp_path / "store")
    store = LmdbStore.open(path, boot_id="first")
    with store.write() as txn:
        txn.put(b"a", b"1")
    store.close()
    directory = os.open(path, os.O_RDONLY)
    store_module._repair(path, directory, "second")
    store_module._repair(path, directory, "second")
    os.close(directory)
    store = LmdbStore.open(path, boot_id="second")
    assert contents(store) == {b"a": b"1"}
    store.close()


def test_writing_goes_on_while_a_thread_writes_the_checkpoint(tmp_path):
    store = LmdbStore.open(str(tmp_path / "store"))
    rng = random.Random(1)
    for _ in range(3):
        change(store, rng, rounds=1)
        pending = store.checkpoint()
        thread = threading.Thread(target=pending.write)
        thread.start()
        change(store, rng, rounds=5)
        thread.join()
    store.close()


def test_durable_applied_moves_with_checkpoints_only(tmp_path):
    from shoalfs.mds import keys, records

    store = LmdbStore.open(str(tmp_path / "store"))
    assert store.durable_applied() == 0
    with store.write() as txn:
        txn.put(keys.APPLIED, records.APPLIED.encode(records.Applied(7, 1, 0)))
    assert store.durable_applied() == 0
    pending = store.checkpoint()
    with store.write() as txn:
        txn.put(keys.APPLIED, records.APPLIED.encode(records.Applied(9, 1, 0)))
    assert store.durable_applied() == 0
    pending.write()
    assert store.durable_applied() == 7
    store.close()
    store = LmdbStore.open(str(tmp_path / "store"))
    assert store.durable_applied() == 9
    store.close()


def test_space_is_used_again_after_a_checkpoint(tmp_path):
    store = LmdbStore.open(str(tmp_path / "store"))
    rng = random.Random(2)
    change(store, rng, rounds=20)
    for _ in range(3):
        store.checkpoint().write()
        change(store, rng, rounds=20)
    size_bytes = store.size_bytes()
    for _ in range(4):
        store.checkpoint().write()
        change(store, rng, rounds=20)
    assert store.size_bytes() < 1.5 * size_bytes
    store.close()


# --- files that are not as they should be -------------------------------------------------------------------


def made(path, boot_id="first"):
    store = LmdbStore.open(str(path), boot_id=boot_id)
    change(store, random.Random(3))
    store.close()
    return path


@pytest.mark.parametrize("boot_id", ["first", "second"])
def test_a_data_file_of_garbage_is_refused(tmp_path, boot_id):
    path = made(tmp_path / "store")
    size_bytes = (path / "data.mdb").stat().st_size
    (path / "data.mdb").write_bytes(b"garbage " * (size_bytes // 8))
    if boot_id == "first":
        with pytest.raises(StorageFailed, match="not an LMDB file"):
            LmdbStore.open(str(path), boot_id=boot_id)
    else:
        # The meta pages are put back, but what they lead to is garbage: LMDB itself or a checksum notices.
        with pytest.raises(StorageFailed):
            LmdbStore.open(str(path), boot_id=boot_id)


@pytest.mark.parametrize("boot_id", ["first", "second"])
@pytest.mark.parametrize("keep", [0, 100, PAGE, 3 * PAGE])
def test_a_data_file_cut_short_is_refused(tmp_path, keep, boot_id):
    path = made(tmp_path / "store")
    os.truncate(path / "data.mdb", keep)
    with pytest.raises(StorageFailed):
        LmdbStore.open(str(path), boot_id=boot_id)


def test_a_missing_data_file_is_refused(tmp_path):
    path = made(tmp_path / "store")
    (path / "data.mdb").unlink()
    with pytest.raises(StorageFailed, match="checkpoint but no data"):
        LmdbStore.open(str(path))


def test_a_missing_checkpoint_is_refused(tmp_path):
    path = made(tmp_path / "store")
    (path / "checkpoint").unlink()
    with pytest.raises(StorageFailed, match="no checkpoint"):
        LmdbStore.open(str(path))


@pytest.mark.parametrize("content", [b"", b"nonsense", b"shoalchk" + bytes(100)])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = made(tmp_path / "store")
    (path / "checkpoint").write_bytes(content)
    with pytest.raises(StorageFailed, match="checkpoint"):
        LmdbStore.open(str(path))


def test_every_bit_of_the_checkpoint_counts(tmp_path):
    path = made(tmp_path / "store")
    whole = (path / "checkpoint").read_bytes()
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (path / "checkpoint").write_bytes(damaged)
        with pytest.raises(StorageFailed):
            LmdbStore.open(str(path))


def test_a_first_opening_that_was_cut_off_is_begun_anew(tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    lmdb.open(str(path), map_size=1 << 20).close()
    store = LmdbStore.open(str(path))
    assert contents(store) == {}
    store.close()


def test_another_format_of_lmdb_is_refused(tmp_path):
    path = made(tmp_path / "store")
    with (path / "data.mdb").open("r+b") as file:
        for page in range(2):
            file.seek(page * PAGE + 20)
            file.write(b"\x02")
    with pytest.raises(StorageFailed, match="format 2"):
        LmdbStore.open(str(path), boot_id="first")


def test_a_directory_serves_one_store(tmp_path):
    store = LmdbStore.open(str(tmp_path / "store"))
    with pytest.raises(UserError, match="in use"):
        LmdbStore.open(str(tmp_path / "store"))
    store.close()
    LmdbStore.open(str(tmp_path / "store")).close()


def test_a_directory_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use"):
        LmdbStore.open(str(tmp_path / "file" / "store"))


# --- a full disk --------------------------------------------------------------------------------------------


def test_a_full_map_is_one_clear_error_and_nothing_of_the_transaction_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAP_BYTES", 1 << 20)
    store = LmdbStore.open(str(tmp_path / "store"))
    with store.write() as txn:
        txn.put(b"a", b"1")

    def fill():
        with store.write() as txn:
            for number in range(1000):
                txn.put(b"k%d" % number, bytes(8000))

    with pytest.raises(StorageFailed, match="largest size"):
        fill()
    assert contents(store) == {b"a": b"1"}
    store.close()


def test_a_full_disk_under_the_checkpoint_leaves_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "store"
    store = LmdbStore.open(str(path), boot_id="first")
    with store.write() as txn:
        txn.put(b"a", b"1")
    store.checkpoint().write()
    with store.write() as txn:
        txn.put(b"a", b"2")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(StorageFailed, match="No space left"):
            store.checkpoint().write()
    shutil.copytree(path, tmp_path / "left")
    left = LmdbStore.open(str(tmp_path / "left"), boot_id="second")
    assert contents(left) == {b"a": b"1"}
    left.close()
    store.close()
