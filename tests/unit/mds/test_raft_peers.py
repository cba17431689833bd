"""The bookkeeping of replication: how entries fit a log, what a leader believes of a follower, its lease."""

import pytest

from shoalfs.mds.raft_members import of_majority
from shoalfs.mds.raft_messages import Append, PeerMessage, entries_of
from shoalfs.mds.raft_peers import Fit, Follower, fit, fitting
from shoalfs.transport.errors import BadMessage
from shoalfs.transport.limits import (
    APPEND_BYTES_MAX,
    APPEND_ENTRIES_MAX,
    APPEND_IN_FLIGHT_MAX,
    ENTRY_BYTES_MAX,
)


class Log:
    """Terms of entries base, base + 1, ..."""

    def __init__(self, terms: list[int], base: int = 0) -> None:
        self.terms, self.base_index = terms, base

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.terms) - 1

    def term_at(self, index: int) -> int | None:
        offset = index - self.base_index
        return self.terms[offset] if 0 <= offset < len(self.terms) else None


def entries(first: int, *terms: int) -> list[tuple[bytes, int, int]]:
    return [(b"e", first + n, term) for n, term in enumerate(terms)]


@pytest.mark.parametrize(
    ("terms", "base", "settled", "prev", "new", "expected"),
    [
        pytest.param([0], 0, 0, (0, 0), [1, 1], (True, 2, 0, 2), id="first entries"),
        pytest.param([0, 1, 1], 0, 0, (2, 1), [2], (True, 3, 2, 1), id="right after the end"),
        pytest.param([0, 1, 1, 1], 0, 0, (1, 1), [1], (True, 2, 3, 0), id="all there, longer log is kept"),
        pytest.param([0, 1, 1, 1], 0, 0, (1, 1), [], (True, 1, 3, 0), id="old heartbeat cuts nothing"),
        pytest.param([0, 1, 1], 0, 0, (1, 1), [1, 1, 1], (True, 4, 2, 2), id="overlap adds the rest"),
        pytest.param([0, 1, 1, 1], 0, 1, (1, 1), [2, 2], (True, 3, 1, 2), id="conflict cuts from there"),
        pytest.param([0, 1, 1, 1], 0, 1, (1, 1), [1, 2], (True, 3, 2, 1), id="conflict in the second"),
        pytest.param([0, 1, 1], 0, 0, (5, 1), [1], (False, 3, 2, 0), id="gap"),
        pytest.param([0, 1, 2, 2, 2], 0, 1, (4, 3), [3], (False, 2, 4, 0), id="whole wrong term is skipped"),
        pytest.param([0, 2, 2, 2, 2], 0, 2, (4, 3), [3], (False, 3, 4, 0), id="but not what is settled"),
        pytest.param([5, 5, 5], 10, 10, (8, 1), [1, 5, 5, 5, 5], (True, 13, 12, 1), id="begins before base"),
        pytest.param([5, 5, 5], 10, 10, (3, 1), [1, 1], (True, 5, 12, 0), id="all before base"),
    ],
)
def test_fit(terms, base, settled, prev, new, expected):
    found = fit(Log(terms, base), settled, *prev, entries(prev[0] + 1, *new))
    matches, index, keep, count = expected
    assert (found.matches, found.index, found.keep, len(found.new)) == (matches, index, keep, count)
    assert found.new == entries(prev[0] + 1, *new)[len(new) - count :]


def test_a_leader_that_contradicts_what_is_committed_ends_this_node():
    with pytest.raises(AssertionError, match="voids entry 2"):
        fit(Log([0, 1, 1, 1]), 3, 1, 1, entries(2, 2))
    with pytest.raises(AssertionError, match="denies entry 3"):
        fit(Log([0, 1, 1, 1]), 3, 3, 2, [])


def test_fit_is_a_value():
    assert fit(Log([0]), 0, 0, 0, []) == Fit(True, 0, 0, [])


# --- what a leader believes -----------------------------------------------------------------------------------


def test_acknowledgements_never_move_back():
    follower = Follower(next_index=10)
    first = follower.sent(1.0, entries(10, 1, 1))
    second = follower.sent(2.0, entries(12, 1))
    follower.agreed(second, 12, 2.1)
    follower.agreed(first, 11, 2.2)
    assert (follower.match_index, follower.next_index) == (12, 13)
    assert follower.agreed_at == 2.0


def test_a_refusal_rewinds_and_an_older_one_does_not():
    follower = Follower(next_index=10)
    first = follower.sent(1.0, entries(10, 1))
    second = follower.sent(1.1, entries(11, 1))
    follower.refused(first, 4, 1.2)
    assert follower.next_index == 4
    again = follower.sent(1.3, entries(4, 1, 1, 1, 1, 1, 1, 1, 1))
    assert follower.next_index == 12
    follower.refused(second, 2, 1.4)  # was under way when the first one came
    assert (follower.next_index, follower.refusals_ignored) == (12, 1)
    follower.agreed(again, 11, 1.5)
    follower.refused(again, 5, 1.6)  # repeated by the network: everything up to 11 is known to be there
    assert (follower.match_index, follower.next_index, follower.refusals_ignored) == (11, 12, 2)


def test_the_window_fills_and_an_answer_empties_it():
    follower = Follower(next_index=1)
    sequence = 0
    for n in range(APPEND_IN_FLIGHT_MAX):
        assert follower.has_room
        sequence = follower.sent(1.0, entries(1 + n, 1))
    assert not follower.has_room
    follower.agreed(sequence, APPEND_IN_FLIGHT_MAX, 1.1)
    assert follower.has_room


def test_a_silent_member_costs_no_memory():
    follower = Follower(next_index=1)
    for n in range(10_000):
        follower.sent(float(n), [])
    assert len(follower._sent) <= 4 * APPEND_IN_FLIGHT_MAX
    assert follower.agreed_at == float("-inf")


@pytest.mark.parametrize(
    ("agreed", "expected"),
    [([], 9.0), ([5.0], 5.0), ([5.0, 7.0], 7.0), ([1.0, 2.0, 3.0], 2.0), ([1.0, 2.0, 3.0, 4.0], 3.0)],
)
def test_lease_counts_the_majority(agreed, expected):
    """Of 1, 2, 3, 4 and 5 members: with the leader itself, so many agreed at that time or later."""
    assert of_majority([9.0, *agreed]) == expected


# --- bounds ---------------------------------------------------------------------------------------------------


def test_a_message_is_never_too_large_to_be_accepted():
    big = [(b"x" * (ENTRY_BYTES_MAX + 1), n, 1) for n in range(1, 6)]
    assert len(fitting(big)) == 1
    many = [(b"x", n, 1) for n in range(1, 3 * APPEND_ENTRIES_MAX)]
    assert len(fitting(many)) == APPEND_ENTRIES_MAX
    assert fitting([]) == []


@pytest.mark.parametrize(
    ("sizes", "payload"),
    [
        pytest.param([(1, 3)], b"ab", id="short payload"),
        pytest.param([(1, 1)], b"ab", id="long payload"),
        pytest.param([(1, 0)], b"", id="empty entry"),
        pytest.param([(1, 1)], b"\x07", id="unknown kind"),
        pytest.param([(1, -1), (1, 3)], b"ab", id="negative"),
        pytest.param([(9, 1)], b"a", id="term after the leader's"),
        pytest.param([(2, 1), (1, 1)], b"ab", id="terms go back"),
        pytest.param([(1, ENTRY_BYTES_MAX + 2)], bytes(ENTRY_BYTES_MAX + 2), id="too large"),
        pytest.param([(1, 1)] * (APPEND_ENTRIES_MAX + 1), bytes(APPEND_ENTRIES_MAX + 1), id="too many"),
        pytest.param([(1, 1)], bytes(APPEND_BYTES_MAX + 1), id="payload too large"),
    ],
)
def test_entries_that_make_no_sense_are_refused(sizes, payload):
    append = Append(2, 1, 0, 0, 0, tuple(sizes))
    with pytest.raises(BadMessage):
        entries_of(append, memoryview(payload))


def test_peer_message_is_small_in_control():
    """Sizes of as many entries as a message may carry fit the control part by far."""
    import msgspec

    append = Append(2**40, 2**40, 2**40, 2**40, 2**40, ((2**40, 2**19),) * APPEND_ENTRIES_MAX)
    assert len(msgspec.msgpack.encode(PeerMessage(1, 2, append))) < 64 * 1024
