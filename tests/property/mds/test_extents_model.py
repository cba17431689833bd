"""The extents of files against a model of bytes, with commands that may do very little at once.

Every command is followed by the comparison: what a reader is told is what the model has, the metadata check finds
nothing, and no more rows are gone than one command may remove. Planted mistakes show that each of these is looked at.
"""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.metadata import ROOT, Metadata, bounded
from shoalfs.fs.committer import divide
from shoalfs.mds import extents, keys, reads
from shoalfs.mds import messages as m
from shoalfs.transport.errors import LayoutConflict
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.limits import FILE_SIZE_BYTES_MAX

BYTES = 40
FILES = 2
ROWS_MAX = 2
COMMANDS_MAX = 200  # that one call may take
HOLE = m.AllocateMode.PUNCH_HOLE | m.AllocateMode.KEEP_SIZE


@dataclass
class File:
    ino: int
    size: int = 0
    bytes_: dict[int, tuple[int, int]] = field(default_factory=dict)  # offset: chunk, offset in it


class World:
    def __init__(self) -> None:
        self.md = Metadata()
        self.md.add_targets()
        self.files = [File(self.md.create(b"%d" % number).ino) for number in range(FILES)]
        self.cut_off_seen = self.divided = self.merged = 0

    def rows(self) -> dict[bytes, bytes]:
        with self.md.store.read() as txn:
            return dict(txn.range(*keys.all_of(b"X")))

    def command(self, request, *, session=None, removed_max=ROWS_MAX):
        before = self.rows()
        reply = self.md.do(request, session=session)
        gone = before.keys() - self.rows().keys()
        assert len(gone) <= removed_max, f"{len(gone)} rows went with one command"
        return reply

    def compare(self) -> None:
        for file in self.files:
            found = self.md.read(reads.get_extents, m.GetExtents(file.ino, 0, FILE_SIZE_BYTES_MAX, 10_000))[0]
            told = {
                extent.offset_bytes + at: (extent.chunk, extent.chunk_offset_bytes + at)
                for extent in found.extents
                for at in range(extent.length_bytes)
            }
            assert told == file.bytes_
            assert found.inode.size_bytes == file.size
            self.cut_off_seen += found.inode.cut_off_bytes != m.NOT_CUT_OFF
            if found.inode.cut_off_bytes == m.NOT_CUT_OFF:
                assert found.inode.used_bytes == len(told)
        assert self.md.findings() == []

    # --- calls, as a client makes them --------------------------------------------------------------------------------

    def write(self, number: int, pieces: list[tuple[int, int]], *, append: bool = False) -> None:
        file = self.files[number]
        chunk = self.md.chunk()
        placed = tuple(self.md.extent(chunk, at, length, chunk_offset=at, chunk_bytes=200) for at, length in pieces)
        request = m.CommitExtents(file.ino, placed, self.md.receipts(chunk), append=append)
        for _ in range(COMMANDS_MAX):
            base = file.size if append else 0
            reply = self.command(request, removed_max=2 * ROWS_MAX if append else ROWS_MAX)
            done, left = divide(request.extents, reply)
            self.divided += bool(left)
            assert not (append and left and done)
            for extent in done:
                for at in range(extent.length_bytes):
                    place = base + extent.offset_bytes + at
                    file.bytes_[place] = (chunk, extent.chunk_offset_bytes + at)
                    file.size = max(file.size, place + 1)
            self.compare()
            if not left:
                return
            request = msgspec.structs.replace(request, extents=left)
        raise AssertionError("the write does not end")

    def truncate(self, number: int, size: int) -> None:
        file = self.files[number]
        self.command(m.SetAttr(ROOT, file.ino, size_bytes=size))
        file.size = size
        file.bytes_ = {at: byte for at, byte in file.bytes_.items() if at < size}
        self.compare()

    def punch(self, number: int, first: int, end: int) -> None:
        file = self.files[number]
        while first < end:
            reply = self.command(m.Allocate(file.ino, first, end - first, HOLE))
            done = reply.left_from_bytes if reply.left else end
            file.bytes_ = {at: byte for at, byte in file.bytes_.items() if not first <= at < done}
            self.compare()
            first = done

    def clone(self, number: int, first: int, at: int, length: int) -> None:
        source, file = self.files[number], self.files[1 - number]
        for _ in range(COMMANDS_MAX):
            reply = self.command(m.CloneRange(source.ino, file.ino, first, at, length))
            done = reply.length_bytes
            for step in range(done):
                file.bytes_.pop(at + step, None)
                if first + step in source.bytes_:
                    file.bytes_[at + step] = source.bytes_[first + step]
            file.size = max(file.size, at + done) if done else file.size
            self.compare()
            first, at, length = first + done, at + done, length - done
            if not done and not reply.again:
                return
        raise AssertionError("the clone does not end")

    def merge(self, number: int, first: int, length: int, *, then: bool = False) -> None:
        """What lies there without a hole, up to ROWS_MAX pieces. ``then``: it is changed after the writer looked."""
        file = self.files[number]
        found = self.md.read(reads.get_extents, m.GetExtents(file.ino, first, length, 10_000))[0]
        pieces = []
        for extent in found.extents[:ROWS_MAX]:
            part = extent.part(max(first, extent.offset_bytes), min(first + length, extent.end_bytes))
            if pieces and pieces[-1].end_bytes != part.offset_bytes:
                break
            pieces.append(part)
        if len(pieces) < 2:
            return
        start, end = pieces[0].offset_bytes, pieces[-1].end_bytes
        chunk = self.md.chunk()
        request = m.MergeExtents(
            file.ino, tuple(pieces), self.md.extent(chunk, start, end - start), self.md.receipts(chunk)
        )
        if then:
            self.write(number, [(start + 1, 1)])
            with pytest.raises(LayoutConflict):
                self.command(request)
        else:
            self.command(request)
            file.bytes_ |= {at: (chunk, at - start) for at in range(start, end)}
            self.merged += 1
        self.compare()

    def trim(self, number: int) -> None:
        self.command(m.Trim(self.files[number].ino), session=0)
        self.compare()

    def settle(self) -> None:
        """What the leader does: nothing is left of what was cut off, then of removed files."""
        for file in self.files:
            while not self.command(m.Trim(file.ino), session=0).done:
                self.compare()
            self.compare()
        for number, file in enumerate(self.files):
            self.md.do(m.Unlink(ROOT, ROOT_INODE, b"%d" % number))
            while not self.command(m.Reap(file.ino), session=0, removed_max=1_000).done:
                pass
        with self.md.store.read() as txn:
            assert not [key for prefix in (b"X", b"C", b"K") for key, _ in txn.range(*keys.all_of(prefix))]
        assert self.md.findings() == []


number = st.integers(0, FILES - 1)
place = st.integers(0, BYTES)
length = st.integers(1, BYTES)
small = st.tuples(place, st.integers(1, 3))
CALLS = st.one_of(
    st.tuples(st.just("write"), number, st.lists(small, min_size=1, max_size=6)),
    st.tuples(st.just("write"), number, st.lists(st.tuples(place, length), min_size=1, max_size=2)),
    st.tuples(st.just("append"), number, st.integers(1, 9)),
    st.tuples(st.just("truncate"), number, place),
    st.tuples(st.just("punch"), number, place, length),
    st.tuples(st.just("clone"), number, place, place, length),
    st.tuples(st.just("trim"), number),
    st.tuples(st.just("merge"), number, place, length),
    st.tuples(st.just("merge_late"), number, place, length),
)


def carry_out(calls) -> World:
    with bounded(ROWS_MAX):
        world = World()
        # Much to cut: without it most histories never have more than one command removes.
        world.write(0, [(at, 1) for at in range(0, BYTES, 2)])
        for name, *arguments in calls:
            match name:
                case "append":
                    world.write(arguments[0], [(0, arguments[1])], append=True)
                case "punch":
                    which, first, length_ = arguments
                    world.punch(which, first, first + length_)
                case "merge_late":
                    world.merge(*arguments, then=True)
                case "clone" if world.md.read(reads.getattr_, m.GetAttr(world.files[arguments[0]].ino)).inode.storage:
                    world.clone(*arguments)
                case "clone":
                    pass  # the source is inline: it is empty
                case _:
                    getattr(world, name)(*arguments)
        world.settle()
        return world


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CALLS, max_size=12))
def test_files_are_as_the_model(calls):
    carry_out(calls)


CUT_AND_WRITTEN = [("truncate", 0, 5), ("write", 0, [(20, 8)]), ("append", 0, 3), ("punch", 0, 2, 30), ("trim", 0)]


def test_a_history_merges():
    calls = [("merge", 0, at, 20) for at in range(0, BYTES, 3)]
    pieces = [("write", 0, [(at, 1)]) for at in range(BYTES)]
    assert carry_out([*pieces, *calls, *[("merge_late", 0, at, 9) for at in (0, 7, 20)]]).merged > 5


def test_a_history_cuts_off_and_divides():
    world = carry_out([*CUT_AND_WRITTEN, ("write", 0, [(at, 1) for at in range(0, BYTES, 2)]), ("write", 0, [(1, 37)])])
    assert world.cut_off_seen > 5
    assert world.divided > 5


# --- planted ----------------------------------------------------------------------------------------------------------


def readers_see_what_was_cut_off(patch):
    real = extents.visible
    patch.setattr(
        extents,
        "visible",
        lambda txn, inode, first, end: real(
            txn, msgspec.structs.replace(inode, cut_off_bytes=m.NOT_CUT_OFF), first, end
        ),
    )


def writers_do_not_remove_what_was_cut_off(patch):
    def link(self, extent):
        end = self.hole(extent.offset_bytes, extent.end_bytes)
        if end > extent.offset_bytes:
            self.put(extent.part(extent.offset_bytes, end))
        return end

    patch.setattr(extents.Edit, "link", link)


def a_cut_forgets_the_rest(patch):
    def cut_off(self, size_bytes):
        self.hole(size_bytes, FILE_SIZE_BYTES_MAX)

    patch.setattr(extents.Edit, "cut_off", cut_off)


def nobody_is_told_to_remove_the_rest(patch):
    patch.setattr(keys, "cut_off", lambda ino: keys.orphan(ino))


def one_command_removes_all(patch):
    real = extents.Edit.__init__
    patch.setattr(extents.Edit, "__init__", lambda self, txn, inode, rows_max: real(self, txn, inode, 1 << 20))


def what_was_cut_off_counts_no_more(patch):
    real = extents.Edit.settle

    def settle(self, now_ns):
        fields = real(self, now_ns)
        return fields if self.cut_off_bytes == m.NOT_CUT_OFF else fields | {"extents": 0}

    patch.setattr(extents.Edit, "settle", settle)


@pytest.mark.parametrize(
    "plant",
    [
        readers_see_what_was_cut_off,
        writers_do_not_remove_what_was_cut_off,
        a_cut_forgets_the_rest,
        nobody_is_told_to_remove_the_rest,
        one_command_removes_all,
        what_was_cut_off_counts_no_more,
    ],
)
def test_planted_mistakes_are_found(monkeypatch, plant):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        carry_out(CUT_AND_WRITTEN)
