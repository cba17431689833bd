"""Fragments: whatever is lost, as long as enough is left, comes back byte for byte."""

from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoalfs.transport.erasure import encode, rebuild
from shoalfs.transport.errors import PosixError
from shoalfs.transport.fragments import cut, fragment_bytes

SHAPES = [(2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (8, 3)]


def bytes_of(length: int) -> bytes:
    return Random(length).randbytes(length)


@pytest.mark.parametrize(("data", "parity"), SHAPES)
@pytest.mark.parametrize("length", [1, 2, 31, 1_000, 65_537])
def test_every_loss_that_may_be_comes_back(data, parity, length):
    content = bytes_of(length)
    fragments = encode([content], data, parity)
    assert len(fragments) == data + parity
    assert {len(fragment) for fragment in fragments} == {fragment_bytes(length, data)}
    assert b"".join(fragments[:data])[:length] == content
    assert not any(b"".join(fragments[:data])[length:])
    for count in range(1, parity + 1):
        for lost in combinations(range(data + parity), count):
            left = {place: fragment for place, fragment in enumerate(fragments) if place not in lost}
            assert rebuild(left, lost, data, parity) == [fragments[place] for place in lost]


@given(
    st.lists(st.binary(max_size=3_000), min_size=1, max_size=6).filter(any),
    st.integers(2, 20),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_any_shape_any_pieces_any_loss(pieces, data, parity, random):
    content = b"".join(pieces)
    fragments = encode(pieces, data, parity)
    assert b"".join(fragments[:data])[: len(content)] == content
    kept = random.sample(range(data + parity), data)
    wanted = [place for place in range(data + parity) if place not in kept]
    assert rebuild({place: fragments[place] for place in kept}, wanted, data, parity) == [fragments[p] for p in wanted]


def test_a_wrong_fragment_goes_in_and_wrong_bytes_come_out():
    """The code does not notice: this is why what is rebuilt is compared with its hash."""
    fragments = encode([bytes_of(1_000)], 4, 2)
    bad = bytes([fragments[1][0] ^ 1]) + bytes(fragments[1][1:])
    left = {0: fragments[0], 1: bad, 2: fragments[2], 4: fragments[4]}
    assert rebuild(left, [3], 4, 2) != [fragments[3]]


def times(a: int, b: int) -> int:
    """In GF(2^8) over x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    while b:
        product ^= a * (b & 1)
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def inverse(a: int) -> int:
    return next(b for b in range(1, 256) if times(a, b) == 1)


@pytest.mark.parametrize(("data", "parity"), SHAPES)
def test_parity_is_what_the_cauchy_matrix_says(data, parity):
    """The matrix is part of the format: row i and column j have 1 / (i xor j). Worked out here without the library."""
    fragments = encode([bytes_of(5 * data)], data, parity)
    for row in range(data, data + parity):
        for at in range(5):
            expected = 0
            for column in range(data):
                expected ^= times(inverse(row ^ column), fragments[column][at])
            assert fragments[row][at] == expected


def test_parity_on_disk_is_what_it_always_was():
    assert [bytes(fragment).hex() for fragment in encode([bytes(range(1, 9))], 4, 2)[4:]] == ["3d90", "7d1e"]


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 90))
def test_a_range_is_cut_at_the_fragments(start, length, each_bytes):
    content = bytes_of(1_000)
    found = b""
    for place, offset, count in cut(start, start + length, each_bytes):
        assert 0 < count <= each_bytes - offset
        found += content[place * each_bytes + offset :][:count]
    assert found == content[start : start + length]


def test_without_the_library_it_is_one_line(monkeypatch):
    from shoalfs.transport import erasure

    erasure._library.cache_clear()
    erasure._tables.cache_clear()
    erasure._generator.cache_clear()
    monkeypatch.setattr(erasure, "_LIBRARY", "libisal-is-not-there.so")
    try:
        assert not erasure.is_there()
        with pytest.raises(PosixError, match="install libisal2"):
            encode([b"x"], 2, 1)
    finally:
        monkeypatch.undo()
        erasure._library.cache_clear()
    assert erasure.is_there()


def test_buffers_are_let_go_of_and_not_changed():
    fragments = [bytearray(fragment) for fragment in encode([bytes_of(1_000)], 4, 2)]
    before = [bytes(fragment) for fragment in fragments]
    rebuild(dict(enumerate(fragments[:4])), [4, 5], 4, 2)
    assert fragments == before
    for fragment in fragments:
        fragment.append(0)  # BufferError while somebody holds it


def test_a_payload_that_needs_no_filling_up_is_not_copied():
    content = bytearray(bytes_of(4_000))
    fragments = encode([content], 4, 2)
    content[0] ^= 1
    assert fragments[0][0] == content[0]
    odd = bytearray(bytes_of(3_999))
    last = bytes(encode([odd], 4, 2)[3])
    assert last == bytes(odd[3_000:]) + b"\0"
