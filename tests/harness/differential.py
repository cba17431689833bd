"""A hypothesis state machine that makes each call on a directory under test and on one of a known filesystem, as three
users, and compares results, errnos, attributes, moved times, and the whole tree.

    run(under_test, known, examples, steps)

Both are existing empty directories that everybody may enter. A difference is a shrunk list of calls that ends with it.
"""

import os
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from harness.trees import assert_same
from harness.twins import ALICE, BOB, ROOT, USERS, Person

NAMES = [b"a", b"b", b"\xff\xfe"]
ODD_NAMES = [*NAMES, b"n" * 255, b"n" * 256, b".", b"..", b"a/"]
SIZES = [0, 1, 100, 4096, 8168, 8169, 20_456, 20_457, 65_536, 70_000, 300_000]
FLAGS = [os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_SYNC]
PHASES = (Phase.generate, Phase.shrink)
TREE_EVERY = 20  # steps between comparisons of the whole tree


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _acls() -> st.SearchStrategy[bytes]:
    bits, no = st.integers(0, 7), 0xFFFFFFFF
    named = st.tuples(bits, st.sampled_from([1000, 1001])).map(lambda t: ((2, t[0], t[1]),))
    group = bits.map(lambda b: ((8, b, 2000),))
    both = st.tuples(named | st.just(()), group | st.just(()))
    whole = st.builds(
        lambda u, g, m, o, more: (
            (1, u, no), *more[0], (4, g, no), *more[1], *([(16, m, no)] if any(more) else []), (32, o, no),
        ),
        bits, bits, bits, bits, both,
    )  # fmt: skip
    return whole.map(lambda entries: _acl(*entries)) | st.sampled_from([b"", b"\2\0\0\0", b"nonsense"])


people = st.sampled_from([ROOT, ALICE, ALICE, BOB])
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(b"/".join)
odd_paths = st.one_of(paths, paths, paths, st.lists(st.sampled_from(ODD_NAMES), min_size=1, max_size=3).map(b"/".join))
modes = st.sampled_from([0o777, 0o755, 0o700, 0o644, 0o600, 0o666, 0o000, 0o1777, 0o2755, 0o4755, 0o6777, 0o070, 0o007])
slots = st.integers(0, 3)
sizes = st.sampled_from(SIZES)
offsets = st.sampled_from([*SIZES, 1_000_000, 9_000_000])
data = st.builds(
    lambda size, seed: (bytes([seed]) * 7 + b"-" + bytes(range(256)))[: size % 264] * (size // 264 + 1),
    sizes,
    st.integers(0, 255),
)
flags = st.builds(
    lambda access, more: access | sum(set(more)),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.lists(st.sampled_from(FLAGS), max_size=3),
)
times = st.none() | st.lists(st.sampled_from([0, 1, 10**18 + 123_456_789, -1, 2**62, -(2**61)]), min_size=2, max_size=2)
ids = st.sampled_from([-1, 0, 1000, 1001, 2000])
xattrs = st.sampled_from(["user.a", "user.b", "trusted.a", "user.", "nonsense.a", "user." + "n" * 251])
lists = st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"])


class Machine(RuleBasedStateMachine):
    """The calls. ``roots`` is set by :func:`run`."""

    roots: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        self._places = [tempfile.mkdtemp(prefix="twin-", dir=root) for root in self.roots]
        for place in self._places:
            for directory in ("", "p", "p/q", "p/q/r"):  # deep enough that no ".." leads out
                os.makedirs(os.path.join(place, directory), exist_ok=True)
                os.chmod(os.path.join(place, directory), 0o777)
        self._people = {user: Person(user, [f"{place}/p/q/r" for place in self._places]) for user in USERS}
        self._steps = 0

    @initialize(whose=st.sampled_from([None, 0, 1000]))
    def many_files_are_made_first(self, whose: int | None) -> None:
        """So many that a mount has the directory to itself, and makes what follows by itself. None: not so."""
        if whose is None:
            return
        for place in self._places:
            os.chown(f"{place}/p/q/r", whose, -1)
            for number in range(12):
                Path(f"{place}/p/q/r/own{number}").write_bytes(b"x" * number)
        time.sleep(0.05)

    def teardown(self) -> None:
        try:
            self._same_trees()
        finally:
            for person in self._people.values():
                person.close()
            for place in self._places:
                shutil.rmtree(place)

    def _same(self, who: str, name: str, *arguments: Any) -> None:
        under_test, known = self._people[who].call(name, *arguments)
        assert under_test == known, f"{name} by {who}: {under_test!r}, the known filesystem says {known!r}"

    def _same_trees(self) -> None:
        assert_same(*map(Path, self._places), times=False)

    @invariant()
    def now_and_then_the_trees_are_compared(self) -> None:
        self._steps += 1
        if self._steps % TREE_EVERY == 0:
            self._same_trees()


def _add(name: str, *strategies: st.SearchStrategy[Any], call: str = "") -> None:
    """One more rule: a call by somebody."""
    arguments = {f"argument{number}": strategy for number, strategy in enumerate(strategies)}

    def step(self: Machine, who: str, **given: Any) -> None:
        self._same(who, call or name, *given.values())

    step.__name__ = name
    setattr(Machine, name, rule(who=people, **arguments)(step))


both = st.booleans()
_add("mkdir", odd_paths, modes)
_add("mkdir_again", paths, modes, call="mkdir")
_add("rmdir", odd_paths)
_add("mkfifo", odd_paths, modes.map(lambda mode: stat.S_IFIFO | mode), st.just(0), call="mknod")
_add(
    "mknod",
    paths,
    st.sampled_from([stat.S_IFREG | 0o640, stat.S_IFCHR | 0o600, stat.S_IFBLK | 0o644]),
    st.sampled_from([0, 0x103, 0xFFFFF]),
)
_add("bind", paths)
_add("symlink", st.sampled_from([*NAMES, b"../a", b"a/b", b"nowhere", b"."]), odd_paths)
_add("readlink", odd_paths)
_add("link", odd_paths, odd_paths, both)
_add("unlink", odd_paths)
_add("rename", odd_paths, odd_paths, st.sampled_from([0, 0, 0, 1, 2, 3, 8]))
_add("listdir", odd_paths)
_add("stat", odd_paths, both)
_add("access", odd_paths, st.integers(0, 7))
_add("chmod", odd_paths, modes)
_add("chown", odd_paths, ids, ids, both)
_add("truncate", odd_paths, offsets | st.just(-1))
_add("utime", odd_paths, times, both)
_add("setxattr", paths, xattrs, st.sampled_from([b"", b"value", b"v" * 300]), st.sampled_from([0, 0, 1, 2, 3]))
_add("getxattr", paths, xattrs)
_add("removexattr", paths, xattrs | lists)
_add("listxattr", paths)
_add("setfacl", paths, lists, _acls(), st.just(0), call="setxattr")
_add("getfacl", paths, lists, call="getxattr")
_add("open", slots, odd_paths, flags, modes)
_add("create", slots, paths, st.just(os.O_RDWR | os.O_CREAT), modes, call="open")
_add("close", slots)
_add("fstat", slots)
_add("read", slots, offsets, sizes)
_add("write", slots, offsets, data)
_add("write_here", slots, data)
_add("map_write", slots, sizes, data)
_add("map_read", slots)
_add("ftruncate", slots, offsets)
_add("fchmod", slots, modes)
_add("fsync", slots)
_add("umask", st.sampled_from([0o022, 0o000, 0o077, 0o027]))


def run(under_test: Path, known: Path, *, examples: int, steps: int, seed: int | None = None) -> None:
    """Raises AssertionError at the first difference. ``seed``: the same calls again."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=PHASES,
        derandomize=seed is None and bool(os.environ.get("CI")),
    )

    class Bound(Machine):
        roots = (str(under_test), str(known))

    machine: Callable[[], Machine] = Bound
    if seed is not None:
        import hypothesis

        machine = hypothesis.seed(seed)(Bound)
    run_state_machine_as_test(machine, settings=chosen)
