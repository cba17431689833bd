"""Whatever a client sends, the state machine answers: no request, however odd, may end the node or break the
namespace."""

import struct

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.metadata import ALICE, ROOT, Metadata
from shoalfs.mds import messages as m
from shoalfs.mds import reads
from shoalfs.mds.messages import OP_TYPES, Op
from shoalfs.transport.errors import ShoalError

_INTS = st.one_of(
    st.integers(-2, 12),
    st.sampled_from(
        [-(1 << 63), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 48, (1 << 48) + 1, (1 << 48) + 5, 1 << 32]
    ),
)
_BYTES = st.one_of(
    st.sampled_from([b"", b".", b"..", b"a", b"b", b"user.a", b"trusted.", b"x/y", b"\0", b"n" * 256, b"h" * 16]),
    st.binary(max_size=20),
)


def of_type(kind):
    """A strategy of values that decode as ``kind``, in and out of range."""
    info = msgspec.inspect.type_info(kind)
    return _of_info(info)


def _of_info(info):
    inspect = msgspec.inspect
    if isinstance(info, inspect.IntType):
        return _INTS
    if isinstance(info, inspect.BoolType):
        return st.booleans()
    if isinstance(info, inspect.BytesType):
        return _BYTES
    if isinstance(info, inspect.StrType):
        return st.text(max_size=5)
    if isinstance(info, inspect.EnumType):
        return st.sampled_from([int(v) for v in info.cls])
    if isinstance(info, inspect.NoneType):
        return st.none()
    if isinstance(info, inspect.UnionType):
        return st.one_of(*(_of_info(t) for t in info.types))
    if isinstance(info, inspect.VarTupleType):
        return st.lists(_of_info(info.item_type), max_size=3)
    if isinstance(info, inspect.TupleType):
        return st.tuples(*(_of_info(t) for t in info.item_types))
    if isinstance(info, inspect.StructType):
        fields = [_of_info(f.type) for f in info.fields]
        if info.cls is m.Credentials:
            return st.one_of(st.sampled_from([[0, 0, []], [1000, 1000, [2000]]]), st.tuples(*fields))
        return st.tuples(*fields)
    raise AssertionError(info)


_BODIES = {op: of_type(types[0]) for op, types in OP_TYPES.items()}
_COMMANDS = st.sampled_from(list(Op)).flatmap(lambda op: st.tuples(st.just(op), _BODIES[op], st.booleans()))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(_COMMANDS, max_size=12))
def test_no_request_ends_the_node_or_breaks_the_namespace(commands):
    md = Metadata()
    md.add_targets()
    d = md.mkdir(b"a", who=ROOT, mode=0o777)
    made = md.create(b"b", parent=d.ino, who=ALICE)
    md.write_inline(made.ino, 0, b"bytes")
    session = md.session
    for seq, (op, body, within) in enumerate(commands, 1000):
        raw = msgspec.Raw(msgspec.msgpack.encode(body))
        md.entry([(session if within else 0, m.Command(3, seq, int(op), raw))])
    assert md.findings() == []


_READS = [
    (reads.lookup, m.Lookup),
    (reads.lookup_many, m.LookupMany),
    (reads.getattr_, m.GetAttr),
    (reads.readlink, m.ReadLink),
    (reads.readdir, m.ReadDir),
    (reads.access, m.Access),
    (reads.open_, m.Open),
    (reads.get_extents, m.GetExtents),
    (reads.getxattr, m.GetXattr),
    (reads.listxattr, m.ListXattr),
    (reads.classify_chunks, m.ClassifyChunks),
    (reads.resolve, m.ResolvePath),
]
_ASKED = st.sampled_from(_READS).flatmap(lambda pair: st.tuples(st.just(pair), of_type(pair[1])))


@settings(max_examples=300, deadline=None)
@given(_ASKED)
def test_no_read_raises_anything_but_our_errors(asked):
    (function, kind), body = asked
    request = msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=kind)
    md = _world()
    try:
        md.read(function, request)
    except ShoalError:
        pass
    except struct.error as error:
        raise AssertionError("a number went into a key unchecked") from error


def _world(kept=[]):  # noqa: B006 - made once: reads change nothing
    if not kept:
        md = Metadata()
        md.add_targets()
        md.create(b"a")
        md.mkdir(b"b")
        md.do(m.Symlink(ROOT, 1, b"c", b"a"))
        kept.append(md)
    return kept[0]
