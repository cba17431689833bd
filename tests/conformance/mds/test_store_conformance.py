"""Both stores keep the promises of the Txn port."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.seal import readable
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.errors import DamagedRecord


@pytest.fixture(params=["memory", "lmdb"])
def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
    else:
        store = LmdbStore.open(str(tmp_path / "store"))
        yield store
        store.close()


def damage(store, key):
    """Flip a bit of the stored value."""
    if isinstance(store, MemoryStore):
        stored = bytearray(store.rows[key])
        stored[-1] ^= 1
        store.rows[key] = bytes(stored)
    else:
        with store._env.begin(write=True) as txn:
            stored = bytearray(txn.get(key))
            stored[-1] ^= 1
            txn.put(key, bytes(stored))


def test_what_is_put_is_there_for_the_writer_and_afterwards_for_readers(store):
    with store.write() as txn:
        txn.put(b"key", b"value")
        assert txn.get(b"key") == b"value"
    with store.read() as txn:
        assert txn.get(b"key") == b"value"
        assert txn.get(b"ke") is None


def test_empty_values_are_values(store):
    with store.write() as txn:
        txn.put(b"key", b"")
    with store.read() as txn:
        assert txn.get(b"key") == b""


def test_delete_says_whether_the_key_was_there(store):
    with store.write() as txn:
        txn.put(b"key", b"value")
        assert txn.delete(b"key")
        assert not txn.delete(b"key")
        assert txn.get(b"key") is None


def test_an_exception_undoes_everything(store):
    with store.write() as txn:
        txn.put(b"a", b"old")
        txn.put(b"b", b"old")

    def change_and_fail():
        with store.write() as txn:
            txn.put(b"a", b"new")
            txn.put(b"a", b"newer")
            txn.delete(b"b")
            txn.put(b"c", b"new")
            txn.delete(b"c")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_and_fail()
    with store.read() as txn:
        assert list(txn.range(b"a", b"z")) == [(b"a", b"old"), (b"b", b"old")]


def test_a_reader_keeps_the_state_it_began_with(store):
    with store.write() as txn:
        txn.put(b"a", b"old")
    with store.read() as reader:
        with store.write() as txn:
            txn.put(b"a", b"new")
            txn.put(b"b", b"new")
        assert list(reader.range(b"a", b"z")) == [(b"a", b"old")]
        assert reader.get(b"a") == b"old"
    with store.read() as reader:
        assert list(reader.range(b"a", b"z")) == [(b"a", b"new"), (b"b", b"new")]


def test_a_range_ends_before_its_end_and_goes_both_ways(store):
    with store.write() as txn:
        for key in (b"a", b"b", b"b\0", b"c", b"cc", b"d"):
            txn.put(key, key)
        assert [k for k, _ in txn.range(b"b", b"cc")] == [b"b", b"b\0", b"c"]
        assert [k for k, _ in txn.range(b"b", b"cc", reverse=True)] == [b"c", b"b\0", b"b"]
        assert [k for k, _ in txn.range(b"bb", b"z")] == [b"c", b"cc", b"d"]
        assert [k for k, _ in txn.range(b"bb", b"z", reverse=True)] == [b"d", b"cc", b"c"]
        assert list(txn.range(b"e", b"z")) == []
        assert list(txn.range(b"e", b"z", reverse=True)) == []
        assert list(txn.range(b"A", b"a")) == []
        assert list(txn.range(b"A", b"a", reverse=True)) == []


def test_a_range_may_be_left_early_and_the_transaction_used_on(store):
    with store.write() as txn:
        for number in range(10):
            txn.put(b"%d" % number, b"")
        for key, _ in txn.range(b"0", b"9", reverse=True):
            assert key == b"8"
            break
        txn.delete(b"8")
        assert next(iter(txn.range(b"0", b"9", reverse=True)))[0] == b"7"


def test_long_keys_and_large_values(store):
    key, value = b"D" + b"n" * 263, b"v" * 65536
    with store.write() as txn:
        txn.put(key, value)
    with store.read() as txn:
        assert txn.get(key) == value


def test_a_damaged_row_is_never_returned(store):
    with store.write() as txn:
        txn.put(b"I" + bytes(7) + b"\x05", b"first")
        txn.put(b"I" + bytes(7) + b"\x06", b"second")
        txn.put(b"I" + bytes(7) + b"\x07", b"third")
    damage(store, b"I" + bytes(7) + b"\x06")
    with store.read() as txn:
        with pytest.raises(DamagedRecord, match="I 6") as caught:
            txn.get(b"I" + bytes(7) + b"\x06")
        assert caught.value.key == b"I" + bytes(7) + b"\x06"
        rows = txn.range(b"I", b"J")
        assert next(rows)[1] == b"first"
        with pytest.raises(DamagedRecord):
            next(rows)
        assert [v for _, v in txn.range(b"I" + bytes(7) + b"\x06\0", b"J")] == [b"third"]


def test_a_row_under_another_key_is_damaged(store):
    with store.write() as txn:
        txn.put(b"a", b"value")
    if isinstance(store, MemoryStore):
        store.rows[b"b"] = store.rows[b"a"]
    else:
        with store._env.begin(write=True) as txn:
            txn.put(b"b", txn.get(b"a"))
    with store.read() as txn, pytest.raises(DamagedRecord):
        txn.get(b"b")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"D" + (7).to_bytes(8, "big") + b"name", "D 7 b'name'"),
        (b"E" + (7).to_bytes(8, "big") + (3).to_bytes(8, "big"), "E 7 3"),
        (b"I" + (9).to_bytes(8, "big"), "I 9"),
        (b"Mcounters", "M b'counters'"),
        (b"T" + (1).to_bytes(4, "big"), "T b'\\x00\\x00\\x00\\x01'"),
        (b"U" + b"\xaa" * 16, "U " + "aa" * 16),
    ],
)
def test_keys_are_readable(key, text):
    assert readable(key) == text


_keys = st.binary(min_size=1, max_size=4)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _keys, st.binary(max_size=20)),
        st.tuples(st.just("delete"), _keys, st.none()),
        st.tuples(st.just("range"), _keys, _keys),
        st.tuples(st.just("commit"), st.none(), st.none()),
        st.tuples(st.just("abort"), st.none(), st.none()),
    ),
    max_size=40,
)


class _Undo(Exception):
    pass


def _run_transaction(store, steps, model):
    """Run steps up to a commit or abort in one transaction; returns the model afterwards and the steps
    left."""
    changed = dict(model)
    try:
        with store.write() as txn:
            while steps:
                kind, key, value = steps.pop(0)
                if kind == "commit":
                    break
                if kind == "abort":
                    raise _Undo
                if kind == "put":
                    txn.put(key, value)
                    changed[key] = value
                elif kind == "delete":
                    assert txn.delete(key) == (changed.pop(key, None) is not None)
                else:
                    expected = sorted((k, v) for k, v in changed.items() if key <= k < value)
                    assert list(txn.range(key, value)) == expected
                    assert list(txn.range(key, value, reverse=True)) == expected[::-1]
    except _Undo:
        return model
    return changed


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
def test_a_store_is_a_sorted_dictionary_with_transactions(store, steps):
    with store.read() as txn:
        model = dict(txn.range(b"\0", b"\xff" * 8))
    steps = list(steps)
    while steps:
        model = _run_transaction(store, steps, model)
    with store.read() as txn:
        assert dict(txn.range(b"\0", b"\xff" * 8)) == model
