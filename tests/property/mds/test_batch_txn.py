"""The batch's transaction is the store below it, only later: any sequence of calls against a dictionary."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shoalfs.mds import batch_txn, records
from shoalfs.mds.batch_txn import BatchTxn
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.records import MapEpoch

KEYS = [b"a", b"b", b"bb", b"c", b"d"]
key = st.sampled_from(KEYS)
epoch = st.integers(0, 1000)
step = st.one_of(
    st.tuples(st.just("put"), key, epoch),
    st.tuples(st.just("store"), key, epoch),
    st.tuples(st.just("delete"), key),
    st.tuples(st.just("get"), key),
    st.tuples(st.just("load"), key),
    st.tuples(st.just("range"), key, key, st.booleans()),
    st.tuples(st.just("between"), st.booleans()),
)


def encoded(number: int) -> bytes:
    return msgspec.msgpack.encode(MapEpoch(number))


def take(txn: BatchTxn, model: dict[bytes, bytes], name: str, arguments: tuple[Any, ...]) -> None:
    match name, arguments:
        case "put", (key, number):
            txn.put(key, encoded(number))
            model[key] = encoded(number)
        case "store", (key, number):
            records.MAP_EPOCH.store(txn, key, MapEpoch(number))
            model[key] = encoded(number)
        case "delete", (key,):
            assert txn.delete(key) == (model.pop(key, None) is not None)
        case "get", (key,):
            assert txn.get(key) == model.get(key)
        case "load", (key,):
            found = records.MAP_EPOCH.load(txn, key)
            assert (None if found is None else msgspec.msgpack.encode(found)) == model.get(key)
        case "range", (first, end, reverse):
            wanted = sorted((k, v) for k, v in model.items() if first <= k < end)
            assert list(txn.range(first, end, reverse=reverse)) == (wanted[::-1] if reverse else wanted)
        case "between", _:
            txn.between_commands()


@given(st.dictionaries(key, epoch), st.lists(step, max_size=40), st.booleans())
def test_it_is_the_store_below_with_what_was_done(before: dict, steps: list[tuple], small: bool) -> None:
    store = MemoryStore()
    with store.write() as below:
        for k, number in before.items():
            below.put(k, encoded(number))
    model = {k: encoded(number) for k, number in before.items()}
    bound, batch_txn.ROWS_MAX = batch_txn.ROWS_MAX, 2 if small else batch_txn.ROWS_MAX
    try:
        with store.write() as below:
            txn = BatchTxn(below)
            for name, *arguments in steps:
                take(txn, model, name, tuple(arguments))
            txn.flush()
    finally:
        batch_txn.ROWS_MAX = bound
    with store.read() as reader:
        assert dict(reader.range(b"", b"\xff")) == model


def test_what_is_written_many_times_is_put_once() -> None:
    puts = []

    class Below:
        decoded = None

        def get(self, key: bytes) -> bytes | None:
            return None

        def put(self, key: bytes, value: bytes) -> None:
            puts.append(key)

    txn = BatchTxn(Below())
    for number in range(100):
        records.MAP_EPOCH.store(txn, b"e", MapEpoch(number))
    assert txn.writes == 100
    txn.flush()
    assert puts == [b"e"]
