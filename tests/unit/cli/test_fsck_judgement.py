"""What `shoal fsck` concludes from the answers it got."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoalfs.chunkserver.messages import ListedChunk, VerifiedChunk
from shoalfs.fs import fsck
from shoalfs.fs.fsck import Expected, Kind, Replica
from shoalfs.mds.messages import ChunkClass, ClusterMap, Extent, Finding, PlacementGroup, Pool, Target, TargetState
from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing
from shoalfs.transport.ids import chunk_id

A, B = chunk_id(1, 10), chunk_id(2, 11)
HASH = b"h" * 16
SAID = {A: Expected(5, 100, HASH), B: Expected(6, 200, HASH)}
GROUPS = {1: (1, 2), 2: (2, 3)}
GOOD = VerifiedChunk(0, 100, HASH)
MISSING = VerifiedChunk(ChunkMissing.code)
CORRUPT = VerifiedChunk(ChunkCorrupt.code)


def extent(chunk, chunk_hash=HASH, chunk_bytes=100):
    return Extent(0, 100, chunk, 0, chunk_bytes, chunk_hash)


def kinds(findings):
    return [found.kind for found in findings]


def test_chunks_named_twice_alike_are_asked_for_once():
    expected, findings = fsck.expected_chunks([(5, extent(A)), (5, extent(A)), (6, extent(B))])
    assert expected == {A: Expected(5, 100, HASH), B: Expected(6, 100, HASH)}
    assert findings == []


@pytest.mark.parametrize("other", [extent(A, b"x" * 16), extent(A, chunk_bytes=99)])
def test_extents_that_disagree_are_found(other):
    _, findings = fsck.expected_chunks([(5, extent(A)), (6, other)])
    assert kinds(findings) == [Kind.CONFLICTING_EXTENTS]
    assert (findings[0].ino, findings[0].chunk) == (6, A)


def test_every_replica_is_asked_for():
    by_target, findings = fsck.replicas(SAID, GROUPS)
    assert by_target == {1: [A], 2: [A, B], 3: [B]}
    assert findings == []


def test_a_target_that_is_out_holds_nothing():
    targets = tuple(
        Target(number, b"", "n", "tcp:a:1", 1, state, 0)
        for number, state in ((1, TargetState.OUT), (2, TargetState.DOWN))
    )
    groups = (PlacementGroup(1, 1, (1, 2)), PlacementGroup(2, 1, (1,)))
    held = fsck.holders(ClusterMap(b"", 1, (), targets, groups))
    assert held == {1: (2,), 2: ()}
    _, findings = fsck.replicas(SAID, held)
    assert [(found.kind, found.chunk) for found in findings] == [(Kind.NO_GROUP, B)]


def test_a_group_that_is_not_in_the_map():
    by_target, findings = fsck.replicas(SAID, {1: (1,)})
    assert by_target == {1: [A]}
    assert kinds(findings) == [Kind.NO_GROUP]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (GOOD, None),
        (MISSING, Kind.MISSING_REPLICA),
        (CORRUPT, Kind.DAMAGED_REPLICA),
        (VerifiedChunk(1006), Kind.DAMAGED_REPLICA),
        (VerifiedChunk(0, 99, HASH), Kind.WRONG_REPLICA),
        (VerifiedChunk(0, 100, b"x" * 16), Kind.WRONG_REPLICA),
    ],
)
def test_one_replica(answer, kind):
    assert fsck.fault(SAID[A], answer) is kind


def judged(first, second, linked=(A,)):
    answers = {Replica(target, A): answer for target, answer in ((1, first), (2, second)) if answer is not None}
    assert fsck.suspects(SAID, answers) == ([A] if {first, second} - {GOOD, None} else [])
    return fsck.judge(SAID, GROUPS, answers, linked)


def test_a_good_copy_beside_a_bad_one():
    findings = judged(GOOD, CORRUPT)
    assert [(found.kind, found.target, found.ino) for found in findings] == [(Kind.DAMAGED_REPLICA, 2, 5)]
    assert kinds(judged(MISSING, GOOD)) == [Kind.MISSING_REPLICA]


def test_who_is_leaving_need_not_have_it_but_may_be_the_only_one_that_has():
    targets = tuple(Target(number, b"", "n", "tcp:a:1", 1, TargetState.UP, 0) for number in (1, 2))
    map_ = ClusterMap(b"", 1, (), targets, (PlacementGroup(1, 1, (1,), (2,)),))
    groups, leaving = fsck.holders(map_), fsck.leaving(map_)
    assert (groups, leaving) == ({1: (1, 2)}, {1: {2}})

    def found(first, second):
        answers = {Replica(1, A): first, Replica(2, A): second}
        return kinds(fsck.judge(SAID, groups, answers, [A], leaving))

    assert found(GOOD, MISSING) == []
    assert found(MISSING, GOOD) == [Kind.MISSING_REPLICA]
    assert found(MISSING, MISSING) == [Kind.LOST_CHUNK]


def test_no_good_copy_is_one_finding():
    findings = judged(MISSING, CORRUPT)
    assert kinds(findings) == [Kind.LOST_CHUNK]
    assert "missing on target 1, damaged on target 2" in findings[0].text


def test_what_could_not_be_asked_is_not_lost():
    assert kinds(judged(MISSING, None)) == [Kind.MISSING_REPLICA]
    assert judged(None, None) == []


def test_what_was_deleted_meanwhile_is_no_finding():
    assert judged(MISSING, MISSING, linked=()) == []


@given(
    answers=st.lists(st.sampled_from([GOOD, MISSING, CORRUPT, None]), min_size=1, max_size=5),
)
def test_lost_exactly_if_all_were_asked_and_none_is_good(answers):
    groups = {1: tuple(range(1, len(answers) + 1))}
    given_answers = {Replica(target, A): answer for target, answer in enumerate(answers, start=1) if answer is not None}
    suspects = fsck.suspects(SAID, given_answers)
    findings = fsck.judge(SAID, groups, given_answers, suspects)
    bad = sum(answer in (MISSING, CORRUPT) for answer in answers)
    assert bool(suspects) == (bad > 0)
    if bad == len(answers):
        assert kinds(findings) == [Kind.LOST_CHUNK]
    else:
        assert len(findings) == bad
        assert Kind.LOST_CHUNK not in kinds(findings)


def test_unknown_chunks_are_findings_only_after_the_grace():
    listed = [ListedChunk(chunk_id(1, number), 10, stored_ns) for number, stored_ns in enumerate((0, 50, 0, 0), 1)]
    listed[1] = ListedChunk(chunk_id(1, 2), 10, 95 * 10**9)
    classes = [ChunkClass.UNKNOWN, ChunkClass.UNKNOWN, ChunkClass.GARBAGE, ChunkClass.LINKED]
    findings, young = fsck.unknown_chunks(3, listed, classes, now_ns=100 * 10**9, grace_ms=60_000)
    assert [(found.kind, found.chunk, found.target) for found in findings] == [(Kind.UNKNOWN_CHUNK, chunk_id(1, 1), 3)]
    assert young == 1


def test_a_chunk_from_the_future_is_young():
    listed = [ListedChunk(A, 10, 200)]
    assert fsck.unknown_chunks(1, listed, [ChunkClass.UNKNOWN], now_ns=100, grace_ms=1) == ([], 1)


def test_a_finding_is_one_line_with_where_what_and_what_to_do():
    found = fsck.of_namespace([Finding("wrong-nlink", 7, "nlink is 2, 1 name leads to it")])
    assert found[0].line().startswith("wrong-nlink: inode 7: nlink is 2, 1 name leads to it: ")
    named = fsck.with_paths(found, {7: "/a/b"})[0]
    assert named.line().startswith("wrong-nlink: /a/b: ")
    assert list(named.as_json()) == ["kind", "ino", "path", "chunk", "target", "text", "remedy"]


def test_every_kind_has_a_remedy():
    target = Target(3, b"", "node-3", "tcp:a:1", 1, TargetState.UP, 0)
    assert "start its chunkserver" in fsck.unreachable(target, "gone").line()
    remedies = {kind: fsck.Finding(kind, "").remedy for kind in Kind}
    assert fsck.Finding("another", "").remedy not in remedies.values()


# --- fragments --------------------------------------------------------------------------------------------------------

PLACES = [bytes([place]) * 16 for place in range(4)]
TWO_OF_FOUR = {A: Expected(5, 100, HASH, b"".join(PLACES))}
FOUR = {1: (1, 2, 3, 4, 5)}  # the last one is leaving, with the fragment of the second
GROUPED = {1: fsck.Fragments(2, {1: 0, 2: 1, 3: 2, 4: 3, 5: 1})}


def fragments(**changed):
    """Answers of targets that all have their fragments, but for ``changed``."""
    held = {target: VerifiedChunk(0, 50, PLACES[place]) for target, place in GROUPED[1].places.items()}
    held |= {int(name[1:]): answer for name, answer in changed.items()}
    return {Replica(target, A): answer for target, answer in held.items() if answer is not None}


def judged_of_fragments(answers):
    assert (fsck.suspects(TWO_OF_FOUR, answers, GROUPED) == [A]) == bool(
        fsck.judge(TWO_OF_FOUR, FOUR, answers, [A], None, GROUPED)
    )
    return kinds(fsck.judge(TWO_OF_FOUR, FOUR, answers, [A], {1: frozenset({5})}, GROUPED))


def test_each_target_has_the_fragment_of_its_place():
    assert judged_of_fragments(fragments()) == []
    assert judged_of_fragments(fragments(t3=VerifiedChunk(0, 50, PLACES[1]))) == [Kind.WRONG_REPLICA]
    assert judged_of_fragments(fragments(t3=VerifiedChunk(0, 100, HASH))) == [Kind.WRONG_REPLICA]
    assert judged_of_fragments(fragments(t3=CORRUPT, t4=MISSING)) == [Kind.DAMAGED_REPLICA, Kind.MISSING_REPLICA]
    assert judged_of_fragments(fragments(t5=MISSING)) == []


def test_with_too_few_good_fragments_a_chunk_is_lost():
    assert judged_of_fragments(fragments(t1=MISSING, t3=MISSING, t4=MISSING)) == [
        Kind.LOST_CHUNK
    ]  # two targets, one fragment
    assert judged_of_fragments(fragments(t1=MISSING, t3=MISSING, t4=None)) == [Kind.MISSING_REPLICA] * 2, (
        "one was not asked"
    )


def test_the_groups_of_pools_of_fragments():
    pools = (Pool(1, "hot", 2, 1), Pool(2, "cold", 3, 3, 2))
    groups = (PlacementGroup(1, 1, (1, 2)), PlacementGroup(2, 2, (1, 2, 3), (4,), 0, (2,)))
    assert fsck.fragmented(ClusterMap(b"", 1, pools, (), groups)) == {2: fsck.Fragments(2, {1: 0, 2: 1, 3: 2, 4: 2})}
