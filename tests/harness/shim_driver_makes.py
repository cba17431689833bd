"""Files that the compiled part makes, as the kernel sees it and as Python does: the part of shim_driver.py for
fs/native/makes.h."""

import errno
import os
import random
import struct
import time

LOOKUP, FORGET, GETATTR, SETATTR, SYMLINK = 1, 2, 3, 4, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH = 20, 21, 22, 23, 24, 25
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, BATCH_FORGET, RENAME2, TMPFILE, STATX = (
    *(27, 28, 29, 30, 34, 35, 42, 45, 51, 52),
)
COPY_FILE_RANGE, SYNCFS, COPY_FILE_RANGE_64 = 47, 50, 53

ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")
ATTR_OUT = struct.Struct("=QII")
OWNER = 1000  # as shim_driver.request has it
DIRECTORY, ELSEWHERE = 50, 51
FIRST, COUNT = 70_000, 5_000
ALL = 0
_FOREVER_S = 1e12


def create_body(name: bytes, mode: int = 0o100664, flags: int = os.O_RDWR, umask: int = 0o22) -> bytes:
    return struct.pack("=IIII", flags | os.O_CREAT, mode, umask, 0) + name + b"\0"


def write_body(handle: int, offset: int, data: bytes, flags: int = 0) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, len(data), flags, 0, 0, 0) + data


def close_body(handle: int) -> bytes:
    return struct.pack("=QIIQ", handle, 0, 0, 5)


def set_body(
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    atime: tuple[int, int] | None = None,
    mtime: tuple[int, int] | None = None,
    size: int | None = None,
    now: bool = False,
) -> bytes:
    """struct fuse_setattr_in"""
    given = {1: mode, 2: uid, 4: gid, 8: size, 16: atime, 32: mtime}
    valid = sum(bit for bit, value in given.items() if value is not None) | 64 | (16 | 128 if now else 0)
    (atime_s, atime_ns), (mtime_s, mtime_ns) = atime or (0, 0), mtime or (0, 0)
    fields = (
        valid,
        0,
        5,
        size or 0,
        0,
        atime_s,
        mtime_s,
        0,
        atime_ns,
        mtime_ns,
        0,
        mode or 0,
        0,
        uid or 0,
        gid or 0,
        0,
    )
    return struct.pack("=IIQQQqqqIIIIIIII", *fields)


def directory_attributes(size: int) -> bytes:
    return ATTR.pack(DIRECTORY, size, 0, 1, 2, 3, 4, 5, 6, 0o40755, 2, OWNER, 9, 0, 4096, 0)


class Maker:
    """Asks as the kernel does, and takes as Python does."""

    def __init__(self, shim, session) -> None:
        self.shim, self.session = shim, session
        self.python: list[tuple[int, int]] = []  # operation and node of what came to Python
        self.concerned: list[tuple[int, bool]] = []
        self.taken: list[tuple] = []
        shim.install(lambda *request: self.python.append(request[:3:2]) or True, bytes(range(1, 54)), 0, 0)
        shim.on_made(self._take)

    def _take(self, node: int, over: bool) -> None:
        self.concerned.append((node, over))
        self.taken += self.shim.take_made(node)

    def ask(self, opcode: int, body: bytes = b"", node: int = DIRECTORY) -> tuple[int, bytes] | None:
        """The answer; None: Python was asked."""
        self.session.ask(opcode, 4000, body, node)
        if self.python:
            assert self.python.pop() == (opcode, node)
            assert self.session.silent()
            return None
        unique, error, answer = self.session.answer()
        assert unique == 4000
        return error, answer

    def create(self, name: bytes, **how: int) -> tuple[int, int, bytes] | None:
        """Number, handle, and attributes."""
        done = self.ask(CREATE, create_body(name, **how))
        if done is None:
            return None
        error, answer = done
        assert not error
        node, generation, *_ = ENTRY.unpack_from(answer)
        told = answer[ENTRY.size :][: ATTR.size]
        handle, flags = struct.unpack_from("=QI", answer, ENTRY.size + ATTR.size)
        assert (ATTR.unpack(told)[0], generation, flags) == (node, 0, 0)
        return node, handle, told

    def asks_for(self, opcode: int, body: bytes = b"", node: int = DIRECTORY) -> list[tuple[int, bool]]:
        """What Python had to take before it got this request."""
        self.concerned.clear()
        assert self.ask(opcode, body, node) is None
        return list(self.concerned)


def check_makes(shim, session) -> None:
    maker = Maker(shim, session)
    shim.believe_until(_FOREVER_S)
    shim.keep_names(30.0, 20.0)
    assert maker.create(b"f") is None, "not granted"
    assert shim.make_in(DIRECTORY, [b"old", b"doubtful"], OWNER) is True
    assert shim.make_in(DIRECTORY, [], OWNER) is False, "it is"
    assert maker.create(b"f") is None, "no numbers"
    _check_names(maker)
    shim.make_no_more(DIRECTORY)
    shim.make_in(DIRECTORY, [b"old"], OWNER)
    shim.give_numbers(FIRST, COUNT)
    _check_one_file(maker)
    _check_what_is_not_made(maker)
    _check_attributes(maker)
    _check_directory(maker)
    _check_what_is_concerned(maker)
    _check_bounds(maker)
    shim.make_no_more(DIRECTORY)
    _check_history(maker)
    shim.give_numbers(0, 0)
    shim.keep_names(0.0, 0.0)


def _check_names(maker: Maker) -> None:
    absent = maker.ask(LOOKUP, b"new\0")
    assert absent is not None
    error, answer = absent
    assert (error, ENTRY.unpack_from(answer)[0], ENTRY.unpack_from(answer)[2]) == (0, 0, 30), (
        "a name that does not exist"
    )
    assert maker.ask(LOOKUP, b"new\0", ELSEWHERE) is None
    for name in (b"old\0", b"doubtful\0", b".\0", b"..\0", b"n" * 256 + b"\0", b"\0", b"no end"):
        assert maker.ask(LOOKUP, name) is None, name
    maker.shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001)
    assert maker.ask(LOOKUP, b"new\0") is None, "the lease may be over"
    maker.shim.believe_until(_FOREVER_S)


def _check_one_file(maker: Maker) -> None:
    """From its making to its close, and what Python gets then."""
    before_ns = time.time_ns()
    node, handle, told = maker.create(b"one")
    assert (node, handle >> 62) == (FIRST, 1)
    fields = ATTR.unpack(told)
    assert (fields[1], fields[9:13]) == (0, (0o100644, 1, OWNER, 100))
    made_ns = fields[3] * 10**9 + fields[6]
    assert before_ns <= made_ns <= time.time_ns()
    assert maker.ask(GETATTR, bytes(16), node) == (0, ATTR_OUT.pack(20, 0, 0) + told)
    assert maker.ask(WRITE, write_body(handle, 0, b"some "), node) == (0, struct.pack("=II", 5, 0))
    assert maker.ask(WRITE, write_body(handle, 5, b"data"), node) == (0, struct.pack("=II", 4, 0))
    error, answer = maker.ask(GETATTR, bytes(16), node)
    changed = ATTR.unpack(answer[ATTR_OUT.size :])
    assert (error, ATTR_OUT.unpack_from(answer)) == (0, (0, 0, 0)), "its times change with the commit"
    assert (changed[1], changed[3], changed[6]) == (9, fields[3], fields[6])
    written_ns = changed[4] * 10**9 + changed[7]
    assert made_ns <= written_ns <= time.time_ns()
    for name in (b"security.capability", b"security.selinux"):
        assert maker.ask(GETXATTR, struct.pack("=II", 0, 0) + name + b"\0", node) == (errno.ENODATA, b"")
    assert maker.ask(FLUSH, close_body(handle), node) == (0, b"")
    assert maker.shim.take_closed(10, 0) == [], "it is open"
    assert maker.ask(RELEASE, close_body(handle), node) == (0, b"")
    assert maker.shim.take_closed(0, 0) == []
    (made,) = maker.shim.take_closed(10, 0)
    flags = os.O_RDWR | os.O_CREAT
    assert made == (
        *(DIRECTORY, b"one", node, handle, 0o664, 0o22, flags, OWNER, 100, True),
        *(made_ns, written_ns, b"some data", None),
    )
    assert maker.shim.take_made(ALL) == []
    assert maker.ask(LOOKUP, b"one\0") is None, "it is Python's"
    assert maker.create(b"one") is None
    # One that is open when it is taken.
    node, handle, _ = maker.create(b"two", flags=os.O_WRONLY | os.O_EXCL | os.O_TRUNC)
    assert maker.shim.take_closed(10, time.time_ns() - 10**9) == [], "not so old yet"
    (made,) = maker.shim.take_closed(0, time.time_ns() + 10**9)
    assert (made[1], made[9], made[11], made[12]) == (b"two", False, 0, b"")
    assert maker.ask(WRITE, write_body(handle, 0, b"x"), node) is None
    assert maker.ask(RELEASE, close_body(handle), node) is None
    assert not maker.concerned


def _check_what_is_not_made(maker: Maker) -> None:
    """Whatever is not as plain as that is Python's; and the name is then one that may be there."""
    for number, how in enumerate(
        (
            {"flags": os.O_WRONLY | os.O_APPEND},
            {"flags": os.O_WRONLY | os.O_DIRECT},
            {"flags": os.O_WRONLY | os.O_SYNC},
            {"flags": os.O_WRONLY | os.O_DSYNC},
            {"mode": 0o104755},
            {"mode": 0o102755},
        )
    ):
        assert maker.create(b"not%d" % number, **how) is None, how
        assert maker.create(b"not%d" % number) is None, "it may be there now"
        assert maker.ask(LOOKUP, b"not%d\0" % number) is None
    for name in (b"", b".", b"..", b"n" * 256):
        assert maker.create(name) is None, name
    assert maker.ask(CREATE, b"short") is None
    assert maker.ask(CREATE, create_body(b"f")[:-1]) is None, "no end"
    maker.shim.make_no_more(DIRECTORY)
    maker.shim.make_in(DIRECTORY, [], OWNER + 1)
    assert maker.create(b"whose") is None, "somebody else's directory"
    maker.shim.make_no_more(DIRECTORY)
    maker.shim.make_in(DIRECTORY, [b"old"], OWNER)
    maker.shim.believe_until(time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001)
    assert maker.create(b"late") is None
    maker.shim.believe_until(_FOREVER_S)

    for number, (opcode, body) in enumerate(
        (
            (WRITE, lambda handle: write_body(handle, 3, b"a hole before it")),
            (WRITE, lambda handle: write_body(handle, 0, b"over what is there")),
            (WRITE, lambda handle: write_body(handle, 2, b"a page", flags=1)),
            (WRITE, lambda handle: write_body(handle + 1, 2, b"another handle")),
            (WRITE, lambda handle: write_body(handle, 2, b"cut")[:-1]),
            (WRITE, lambda handle: write_body(handle, 2, bytes((1 << 18) - 1))),
            (READ, lambda handle: write_body(handle, 0, b"")),
            (OPEN, lambda handle: bytes(8)),
            (FSYNC, lambda handle: struct.pack("=QII", handle, 0, 0)),
            (GETXATTR, lambda handle: bytes(8) + b"user.x\0"),
            (GETXATTR, lambda handle: bytes(8) + b"security.\0"),
            (GETXATTR, lambda handle: bytes(8) + b"security.x"),
            (LISTXATTR, lambda handle: bytes(8)),
            (SETATTR, lambda handle: set_body()),
            (SETATTR, lambda handle: set_body(size=1)),
            (SETATTR, lambda handle: set_body(mode=0o104644)),
            (SETATTR, lambda handle: set_body(mode=0o102644)),
            (SETATTR, lambda handle: set_body(uid=OWNER + 1)),
            (SETATTR, lambda handle: set_body(gid=101)),
            (SETATTR, lambda handle: set_body(now=True)),
            (SETATTR, lambda handle: set_body(mtime=(1 << 62, 0))),
            (SETATTR, lambda handle: set_body(mode=0o100644)[:-1]),
            (STATX, lambda handle: bytes(24)),
            (RELEASE, lambda handle: close_body(handle + 1)),
        )
    ):
        node, handle, _ = maker.create(b"once%d" % number)
        assert maker.ask(WRITE, write_body(handle, 0, b"ab"), node) is not None
        maker.taken.clear()
        assert maker.asks_for(opcode, body(handle), node) == [(node, False)], (opcode, number)
        ((_, name, *_, is_closed, _, _, data, _),) = maker.taken
        assert (name, is_closed, data) == (b"once%d" % number, False, b"ab")
    node, handle, _ = maker.create(b"reader", flags=os.O_RDONLY)
    assert maker.asks_for(WRITE, write_body(handle, 0, b"x"), node) == [(node, False)]
    node, handle, _ = maker.create(b"closed")
    maker.ask(RELEASE, close_body(handle), node)
    assert maker.asks_for(GETATTR, bytes(16), node) == [(node, False)], "its times are those of the commit"


def _check_attributes(maker: Maker) -> None:
    """What is set of an open file goes with it."""

    def told(opcode: int, body: bytes) -> tuple:
        error, answer = maker.ask(opcode, body, node)
        assert not error
        return ATTR.unpack(answer[ATTR_OUT.size :])

    node, handle, _ = maker.create(b"set")
    maker.ask(WRITE, write_body(handle, 0, b"data"), node)
    fields = told(SETATTR, set_body(mode=0o100600, atime=(5, 6), mtime=(-7, 8), uid=OWNER, gid=100))
    assert (fields[1], fields[3], fields[6], fields[9:13]) == (4, 5, 6, (0o100600, 1, OWNER, 100))
    assert (fields[4], fields[7]) == ((1 << 64) - 7, 8)
    assert fields[5] > 1_700_000_000
    assert told(GETATTR, bytes(16)) == fields
    assert told(SETATTR, set_body(mode=0o100640))[9] == 0o100640
    maker.ask(WRITE, write_body(handle, 4, b"more"), node)
    fields = told(GETATTR, bytes(16))
    assert fields[4] > 1_700_000_000, "it was written since"
    assert (fields[3], fields[9]) == (5, 0o100640)
    told(SETATTR, set_body(mtime=(9, 10)))
    maker.ask(RELEASE, close_body(handle), node)
    (made,) = maker.shim.take_closed(10, 0)
    assert made[-2:] == (b"datamore", (0o640, OWNER, 100, 5 * 10**9 + 6, 9 * 10**9 + 10))
    node, handle, _ = maker.create(b"set in part")
    told(SETATTR, set_body(mtime=(0, 1)))
    (made,) = maker.shim.take_made(node)
    assert made[-1] == (None, None, None, None, 1)
    node, handle, _ = maker.create(b"set and closed")
    maker.ask(RELEASE, close_body(handle), node)
    assert maker.asks_for(SETATTR, set_body(mode=0o100600), node) == [(node, False)]


def _check_directory(maker: Maker) -> None:
    """Its attributes, with what is made in it, as long as they are known."""
    shim = maker.shim

    def told() -> tuple | None:
        done = maker.ask(GETATTR, bytes(16))
        return done and ATTR.unpack(done[1][ATTR_OUT.size :])

    assert told() is None
    shim.describe(DIRECTORY, directory_attributes(7))
    assert told() == ATTR.unpack(directory_attributes(7))
    made = [ATTR.unpack(maker.create(b"in%d" % number)[2]) for number in range(3)]
    fields = told()
    assert fields[1] == 10
    assert (fields[4], fields[7]) == (fields[5], fields[8]) == (made[-1][4], made[-1][7])
    assert (fields[3], fields[6], fields[9:]) == (1, 4, ATTR.unpack(directory_attributes(7))[9:])
    shim.describe(DIRECTORY, None)
    assert told() is None
    shim.describe(ELSEWHERE, directory_attributes(7))
    assert maker.ask(GETATTR, bytes(16), ELSEWHERE) is None
    try:
        shim.describe(DIRECTORY, b"short")
    except ValueError:
        pass
    else:
        raise AssertionError("taken")
    shim.take_made(DIRECTORY)


def _check_what_is_concerned(maker: Maker) -> None:
    def fresh(name: bytes) -> int:
        maker.shim.take_made(ALL)
        return maker.create(name)[0]

    for opcode in (COPY_FILE_RANGE, COPY_FILE_RANGE_64):
        made = [fresh(b"copied %d" % opcode), maker.create(b"copied to %d" % opcode)[0]]
        maker.taken.clear()
        assert maker.asks_for(opcode, bytes(56), made[0]) == [(ALL, False)], "both"
        assert [one[2] for one in maker.taken] == made
    everything, directory = [(ALL, False)], [(DIRECTORY, False)]
    of_a_file = (
        (UNLINK, b"%s\0"),
        (MKNOD, bytes(16) + b"%s\0"),
        (MKDIR, bytes(8) + b"%s\0"),
        (SYMLINK, b"%s\0there\0"),
    )
    for number, (opcode, body) in enumerate(((LOOKUP, b"%s\0"), *of_a_file)):
        name = b"named%d" % number
        node = fresh(name)
        if opcode != LOOKUP:
            assert maker.asks_for(opcode, body.replace(b"%s", b"other")) == [], opcode
        assert maker.asks_for(opcode, body.replace(b"%s", name)) == [(node, False)], opcode
        assert maker.asks_for(opcode, body.replace(b"%s", name)) == [], "it is Python's"
    node = fresh(b"created")
    assert maker.asks_for(CREATE, create_body(b"created")) == [(node, False)]
    for opcode in (GETATTR, STATX, READDIR, FSYNCDIR):
        fresh(b"asked%d" % opcode)
        assert maker.asks_for(opcode, bytes(40)) == directory, opcode
        assert maker.asks_for(opcode, bytes(40), ELSEWHERE) == [], opcode
    for opcode in (SETATTR, SETXATTR, REMOVEXATTR):
        fresh(b"changed%d" % opcode)
        assert maker.asks_for(opcode, bytes(88), ELSEWHERE) == [], opcode
        assert maker.asks_for(opcode, bytes(88)) == [(DIRECTORY, True)], opcode
        assert maker.create(b"after%d" % opcode) is None, "not before it is granted again"
        assert maker.ask(LOOKUP, b"after%d\0" % opcode) is None
        maker.shim.make_no_more(DIRECTORY)
        assert maker.shim.make_in(DIRECTORY, [b"old"], OWNER)
    for number, (opcode, body) in enumerate(
        (
            (RMDIR, b"d\0"),
            (RENAME, struct.pack("=Q", ELSEWHERE) + b"a\0b\0"),
            (RENAME2, struct.pack("=QII", ELSEWHERE, 0, 0) + b"a\0b\0"),
            (LINK, struct.pack("=Q", 99) + b"link\0"),
            (COPY_FILE_RANGE, bytes(56)),
            (SYNCFS, bytes(8)),
        )
    ):
        fresh(b"all%d" % number)
        maker.shim.take_made(ALL)
        fresh(b"all again%d" % number)
        assert maker.asks_for(opcode, body, ELSEWHERE) == everything, opcode
    for opcode in (FORGET, BATCH_FORGET, STATFS, OPENDIR, RELEASEDIR, ACCESS, GETXATTR, LISTXATTR, TMPFILE):
        fresh(b"no%d" % opcode)
        maker.concerned.clear()
        maker.session.ask(opcode, 4000, bytes(40), DIRECTORY)
        maker.python.clear()
        assert maker.concerned == [], opcode
        assert len(maker.shim.take_made(ALL)) == 1
        while not maker.session.silent():
            pass
    # Names that others bring in are not made, nor said not to exist.
    into = struct.pack("=Q", DIRECTORY)
    for opcode, body, node, name in (
        (RENAME, into + b"a\0moved\0", ELSEWHERE, b"moved"),
        (RENAME2, into + bytes(8) + b"a\0moved2\0", ELSEWHERE, b"moved2"),
        (LINK, struct.pack("=Q", 99) + b"linked\0", DIRECTORY, b"linked"),
        (MKDIR, bytes(8) + b"sub\0", DIRECTORY, b"sub"),
        (SYMLINK, b"pointer\0there\0", DIRECTORY, b"pointer"),
        (MKNOD, bytes(16) + b"pipe\0", DIRECTORY, b"pipe"),
    ):
        assert maker.ask(LOOKUP, name + b"\0") is not None
        assert maker.ask(opcode, body, node) is None
        assert maker.ask(LOOKUP, name + b"\0") is None, name
        assert maker.create(name) is None, name
    for opcode in (LOOKUP, UNLINK, SYMLINK, MKNOD, MKDIR, CREATE, RENAME, RENAME2, LINK):
        for size in (0, 3, 7, 8, 9, 16, 17):
            maker.ask(opcode, b"x" * size)
    maker.shim.take_made(ALL)


def _check_bounds(maker: Maker) -> None:
    shim = maker.shim
    shim.give_numbers(FIRST + 100_000, 300)
    assert shim.numbers_left() == 300
    made = []
    while (one := maker.create(b"many%d" % len(made))) is not None:
        made.append(one)
    assert len(made) == 256, "so many at a time"
    assert shim.numbers_left() == 44
    assert [one[2] for one in shim.take_made(DIRECTORY)] == [node for node, *_ in made]
    while maker.create(b"more%d" % shim.numbers_left()) is not None:
        pass
    assert shim.numbers_left() == 0
    shim.take_made(ALL)
    shim.give_numbers(FIRST + 200_000, 1_000)
    written = 0
    while (one := maker.create(b"large%d" % written)) is not None:
        assert maker.ask(WRITE, write_body(one[1], 0, bytes(1 << 17)), one[0]) is not None
        assert maker.ask(WRITE, write_body(one[1], 1 << 17, bytes(1 << 17)), one[0]) is not None
        written += 1
    assert written == 64, "16 MiB in all"
    assert sum(len(one[12]) for one in shim.take_made(ALL)) == 16 << 20
    assert maker.create(b"room again") is not None
    shim.take_made(ALL)
    granted = [node for node in range(1_000, 1_100) if shim.make_in(node, [], OWNER)]
    assert len(granted) == 63
    for node in granted:
        shim.make_no_more(node)
    for wrong in ((1, [5], 0), (1, 5, 0), (1, ["text"], 0)):
        try:
            shim.make_in(*wrong)
        except TypeError:
            continue
        raise AssertionError(f"taken: {wrong!r}")
    assert shim.make_in(1, [b"a", b"a"], 0) is True
    shim.make_no_more(1)


def _check_history(maker: Maker) -> None:
    """Two directories, against a model."""
    rng, shim = random.Random(7), maker.shim
    maker.taken.clear()
    number = FIRST + 400_000
    granted: dict[int, set[bytes]] = {}
    files: dict[int, list] = {}  # parent, name, handle, is closed, data

    def check(taken: list[tuple]) -> None:
        for parent, name, node, handle, *_, is_closed, _, _, data, _ in taken:
            assert files.pop(node) == [parent, name, handle, is_closed, data]

    for _ in range(30_000):
        what, parent = rng.random(), rng.choice((DIRECTORY, ELSEWHERE))
        name = b"h%d" % rng.randrange(3_000)
        node = rng.choice(list(files)) if files else 0
        if what < 0.002:
            number += 2_000
            shim.give_numbers(number, 1_000)
        elif what < 0.004:
            names = [b"h%d" % rng.randrange(3_000) for _ in range(rng.randrange(1_500))]
            if shim.make_in(parent, names, OWNER):
                assert parent not in granted
                granted[parent] = set(names)
        elif what < 0.005:
            check(shim.take_made(parent))
            shim.make_no_more(parent)
            granted.pop(parent, None)
            assert not [one for one in files.values() if one[0] == parent]
        elif what < 0.3:
            done = maker.ask(CREATE, create_body(name), parent)
            check(maker.taken)
            maker.taken.clear()
            if done is None:
                granted.get(parent, set()).add(name)
                continue
            assert name not in granted[parent]
            granted[parent].add(name)
            node = ENTRY.unpack_from(done[1])[0]
            files[node] = [parent, name, struct.unpack_from("=Q", done[1], ENTRY.size + ATTR.size)[0], False, b""]
        elif what < 0.4:
            done = maker.ask(LOOKUP, name + b"\0", parent)
            check(maker.taken)
            maker.taken.clear()
            assert (done is not None) == (parent in granted and name not in granted[parent])
        elif what < 0.6 and node and not files[node][3]:
            data = rng.randbytes(rng.randrange(1, 20_000))
            assert maker.ask(WRITE, write_body(files[node][2], len(files[node][4]), data), node) is not None
            files[node][4] += data
        elif what < 0.8 and node and not files[node][3]:
            assert maker.ask(RELEASE, close_body(files[node][2]), node) is not None
            files[node][3] = True
        elif what < 0.85:
            check(shim.take_closed(rng.randrange(30), rng.choice((0, time.time_ns()))))
        elif what < 0.86:
            check(shim.take_made(rng.choice((ALL, node, DIRECTORY, ELSEWHERE))))
    check(shim.take_made(ALL))
    assert not files
    for parent in granted:
        shim.make_no_more(parent)
