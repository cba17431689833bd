"""The index under several threads: it has no locks of LMDB's own, so its threads have to take turns."""

import threading

from shoalfs.chunkserver.index import Index, Row
from shoalfs.chunkserver.watch import Watch
from shoalfs.transport.ids import ChunkId
from shoalfs.transport.limits import DISK_CALL_MS_MAX

CHUNKS = 400  # several pages of LMDB
ROUNDS = 300


def row(round_: int, chunk: int) -> Row:
    return Row(round_ + 1, chunk * 4096, 4096, round_, bytes(16))


def test_readers_see_all_of_a_transaction_or_nothing_of_it(tmp_path):
    index = Index(str(tmp_path / "index"), Watch(DISK_CALL_MS_MAX))
    for chunk in range(1, CHUNKS + 1):
        index.add(ChunkId(chunk), row(0, chunk), 0)
    done = threading.Event()
    wrong: list[object] = []
    read = [0, 0, 0]

    def look(reader: int) -> None:
        while not done.is_set():
            found = index.after(ChunkId(0), 2 * CHUNKS)
            one = index.get(ChunkId(CHUNKS // 2))
            rounds = {entry.segment for _, entry in found}
            if len(found) != CHUNKS or len(rounds) != 1 or one is None or one.segment < min(rounds):
                wrong.append((len(found), rounds, one))
                return
            read[reader] += 1

    readers = [threading.Thread(target=look, args=(reader,)) for reader in range(len(read))]
    for thread in readers:
        thread.start()
    try:
        for round_ in range(1, ROUNDS):
            with index.write() as changes:
                for chunk in range(1, CHUNKS + 1):
                    changes.drop(ChunkId(chunk), row(round_ - 1, chunk))
                    changes.put(ChunkId(chunk), row(round_, chunk))
    finally:
        done.set()
        for thread in readers:
            thread.join(30.0)
    assert wrong == []
    assert all(read)
    assert index.known(ChunkId(1)) in (None, row(ROUNDS - 1, 1))
    index.close()
