"""A program that writes files and remembers, outside of the filesystem under test, what it was promised.

It runs as a process of its own: ``python workload.py TREE JOURNAL SEED``, until SIGTERM. Before every operation it
appends what it is about to do to the journal, and after it the word that it was done. :func:`verify` compares a tree
with a journal: what was done must be there, what was begun last may be there or not, and nothing may be half there.
Files are acknowledged by close; a third of them by fsync and rename.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from random import Random

_NAMES = 60  # few enough that names are written again and again
_ABSENT = ""  # what stands for the digest of a file that is not there


def work(tree: Path, journal: Path, seed: int) -> None:
    """Change ``tree`` until told to stop. An error of the filesystem ends it, as it would end any program."""
    random = Random(seed)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    with open(journal, "a", buffering=1, encoding="utf-8") as out:
        while not stop:
            name = f"f{random.randrange(_NAMES):02}"
            action = random.choices(("write", "replace", "remove"), (5, 3, 1))[0]
            data = b"" if action == "remove" else random.randbytes(_size(random))
            digest = _ABSENT if action == "remove" else hashlib.sha256(data).hexdigest()
            out.write(json.dumps(["begin", name, digest, action]) + "\n")
            _apply(tree / name, action, data)
            out.write(json.dumps(["done", name, digest, action]) + "\n")


def _size(random: Random) -> int:
    return random.choice((0, 100, 20_456, 20_457, 30_000, 70_000, 300_000, 2_000_000))


def _apply(path: Path, action: str, data: bytes) -> None:
    if action == "remove":
        path.unlink(missing_ok=True)
        return
    beside = path.with_suffix(".new")
    with open(beside, "wb") as file:
        file.write(data)
        if action == "replace":
            file.flush()
            os.fsync(file.fileno())
    os.rename(beside, path)


def done_count(journal: Path) -> int:
    """How many operations were acknowledged until now."""
    return journal.read_text(encoding="utf-8").count('["done"') if journal.exists() else 0


def verify(tree: Path, journal: Path) -> int:
    """Fail unless ``tree`` is what ``journal`` promises. Returns the number of promises."""
    allowed: dict[str, set[str]] = {f"f{number:02}": {_ABSENT} for number in range(_NAMES)}
    promises = 0
    for line in journal.read_text(encoding="utf-8").splitlines():
        word, name, digest, _ = json.loads(line)
        if word == "begin":
            allowed[name] |= {digest}
        else:
            allowed[name] = {digest}
            promises += 1
    for name, digests in allowed.items():
        path = tree / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else _ABSENT
        assert found in digests, f"{name}: {found or 'absent'}, promised {digests}"
    return promises


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
