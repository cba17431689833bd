"""The arithmetic of fragments: Reed-Solomon codes over GF(2^8), by ISA-L (https://github.com/intel/isa-l).

Any ``data`` of the ``data + parity`` fragments of a chunk give all others. The generator matrix is the identity over a
Cauchy matrix (``gf_gen_cauchy1_matrix``), of which every square submatrix can be inverted; that of Vandermonde, which
the library offers too, has combinations of losses from which it cannot recover (ISA-L, erasure_code.h). What is on disk
depends on this matrix: it must never be changed.

The library is called through ctypes, which lets go of the interpreter lock meanwhile: a thread is worth it. It is
looked for at the first use, because only pools of fragments need it.

Nothing here knows whether a fragment is right: callers verify what goes in and what comes out (transport/checksum.py).
"""

import ctypes
import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import ClassVar, Final

from shoalfs.transport.errors import PosixError
from shoalfs.transport.fragments import fragment_bytes
from shoalfs.transport.frame import Buffer

_LIBRARY: Final = "libisal.so.2"
_TABLE_BYTES: Final = 32  # that the library expands each coefficient to


def is_there() -> bool:
    """Whether the library is installed."""
    try:
        _library()
    except PosixError:
        return False
    return True


def encode(payload: Sequence[Buffer], data: int, parity: int) -> list[memoryview]:
    """All fragments of the chunk whose bytes these are, in order of place. Those of data are views of a payload that is
    one buffer, as far as they need no filling up; it must not change while they are used.

    Raises PosixError(EOPNOTSUPP) if the library is not installed.
    """
    fragments = _cut(memoryview(payload[0] if len(payload) == 1 else b"".join(payload)).cast("B"), data)
    return [*fragments, *_multiplied(fragments, parity, _tables(data, parity))]


def rebuild(fragments: Mapping[int, Buffer], wanted: Sequence[int], data: int, parity: int) -> list[memoryview]:
    """The fragments at the places ``wanted``, from at least ``data`` others, by place. Raises as :func:`encode`."""
    sources = tuple(sorted(fragments)[:data])
    assert len(sources) == data, (sorted(fragments), data)
    given = [memoryview(fragments[place]).cast("B") for place in sources]
    return _multiplied(given, len(wanted), _rebuilding_tables(sources, tuple(wanted), data, parity))


def _cut(content: memoryview, data: int) -> list[memoryview]:
    length = fragment_bytes(len(content), data)
    cuts = [content[place * length : (place + 1) * length] for place in range(data)]
    return [cut if len(cut) == length else memoryview(bytes(cut) + bytes(length - len(cut))) for cut in cuts]


def _multiplied(fragments: Sequence[memoryview], count: int, tables: bytes) -> list[memoryview]:
    """The ``count`` fragments that the tables make of these, all of one length."""
    length = len(fragments[0])
    assert all(len(fragment) == length for fragment in fragments), [len(fragment) for fragment in fragments]
    made = bytearray(count * length)
    with ExitStack() as held:
        sources = [held.enter_context(_address(fragment)) for fragment in fragments]
        first = held.enter_context(_address(made))
        _library().ec_encode_data(
            length,
            len(sources),
            count,
            tables,
            (ctypes.c_void_p * len(sources))(*sources),
            (ctypes.c_void_p * count)(*(first + at * length for at in range(count))),
        )
    view = memoryview(made).toreadonly()
    return [view[at * length : (at + 1) * length] for at in range(count)]


class _View(ctypes.Structure):
    """Py_buffer (https://docs.python.org/3/c-api/buffer.html): the address of a buffer that may not be written to is to
    be had by no other way of ctypes."""

    _fields_: ClassVar = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


@contextmanager
def _address(buffer: Buffer) -> Iterator[int]:
    """Where the bytes of a contiguous buffer are, as long as the block lasts."""
    view = _View()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(view), 0)
    try:
        yield view.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


# --- matrices -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _generator(data: int, parity: int) -> bytes:
    """One row of ``data`` coefficients for each fragment."""
    rows = data + parity
    matrix = ctypes.create_string_buffer(rows * data)
    _library().gf_gen_cauchy1_matrix(matrix, rows, data)
    return matrix.raw[: rows * data]


@lru_cache(maxsize=64)
def _tables(data: int, parity: int) -> bytes:
    return _expanded(_generator(data, parity)[data * data :], data)


@lru_cache(maxsize=1_024)  # of up to 32 KiB each
def _rebuilding_tables(sources: tuple[int, ...], wanted: tuple[int, ...], data: int, parity: int) -> bytes:
    """What takes the fragments at ``sources`` to those ``wanted``: the rows of these, times the inverse of the rows of
    those."""
    generator = _generator(data, parity)
    library = _library()
    square = ctypes.create_string_buffer(b"".join(_row(generator, place, data) for place in sources), data * data)
    inverse = ctypes.create_string_buffer(data * data)
    singular = library.gf_invert_matrix(square, inverse, data)
    assert not singular, (sources, data, parity)
    back = inverse.raw
    rows = bytearray()
    for place in wanted:
        row = _row(generator, place, data)
        for column in range(data):
            total = 0
            for at in range(data):
                total ^= library.gf_mul(row[at], back[at * data + column])
            rows.append(total)
    return _expanded(bytes(rows), data)


def _row(generator: bytes, place: int, data: int) -> bytes:
    return generator[place * data : (place + 1) * data]


def _expanded(rows: bytes, data: int) -> bytes:
    tables = ctypes.create_string_buffer(len(rows) * _TABLE_BYTES)
    _library().ec_init_tables(data, len(rows) // data, rows, tables)
    return tables.raw


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """Raises PosixError(EOPNOTSUPP)."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        text = f"{_LIBRARY}: not installed: a pool of fragments needs ISA-L: install libisal2 on this machine"
        raise PosixError(errno.EOPNOTSUPP, text) from error
    integer, pointer, text_ = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p
    for name, arguments, result in (
        ("gf_gen_cauchy1_matrix", [pointer, integer, integer], None),
        ("gf_invert_matrix", [pointer, pointer, integer], integer),
        ("gf_mul", [ctypes.c_ubyte, ctypes.c_ubyte], ctypes.c_ubyte),
        ("ec_init_tables", [integer, integer, text_, pointer], None),
        ("ec_encode_data", [integer, integer, integer, text_, pointer, pointer], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library
