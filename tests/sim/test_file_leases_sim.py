"""Write leases in the simulated world: whatever breaks, bytes of files are registers and a log is a log, as
docs/leases.md promises; and the checkers that say so find planted mistakes.

SHOAL_SIM_SEEDS=200 runs more histories than the default; SHOAL_SIM_FIRST says where to begin.
"""

import os

import pytest

from sim.broken import Broken
from sim.file_histories import FileCall, LogCall, check_log, check_registers
from sim.file_world import CAUSES, simulate_files
from sim.hunt import hunt
from sim.planted_leases import MISTAKES

SEEDS = range(int(os.environ.get("SHOAL_SIM_FIRST", "0")), int(os.environ.get("SHOAL_SIM_SEEDS", "6")))
SECONDS = 14.0
PLANTED_SECONDS = 6.0
PLANTED_SEEDS = 80
FOUND_BY = {
    "a_close_reports_an_open_that_is_under_way": 15,
    "a_writer_that_is_silent_is_not_waited_for": 12,
    "a_commit_that_was_called_back_ends_with_the_connection": 4,
    "a_lost_session_is_no_matter_to_what_was_written": 4,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_are_registers_whatever_breaks(seed: int):
    world = simulate_files(seed, SECONDS, CAUSES)
    counts = world.counts
    assert counts["checked"] > 30, counts
    assert counts["late"] > 10, "little was kept, so little was tried"
    assert counts["kernel"], "nothing was read from a cache"
    assert counts["records"]
    assert counts["commits checked"]
    assert counts["unsure"] <= 1 + counts["reads"] / 50, counts
    excused = sum(count for what, count in counts.items() if what.startswith("excused"))
    assert excused < counts["writes"] / 2, counts


def test_with_nothing_broken_nothing_fails_and_nothing_is_excused():
    world = simulate_files(1, SECONDS, ())
    told = {"reads", "writes", "kernel", "commits checked", "checked", "records", "late", "unsure"}
    assert set(world.counts) <= told, world.counts


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    plant, causes = MISTAKES[name]
    plant(monkeypatch)

    def history(seed: int) -> None:
        simulate_files(seed, PLANTED_SECONDS, causes, calm_s=1.0)

    hunt(name, history, PLANTED_SEEDS, FOUND_BY.get(name, 0))


def test_there_are_enough():
    assert len(MISTAKES) >= 16


# --- the checkers ----------------------------------------------------------------------------------------------------

PLACE = ("f", 0)


def write(mount, value, began, ended, **more):
    return FileCall(mount, mount, PLACE, began, True, value, ended, **more)


def read(mount, value, began, ended):
    return FileCall(mount, mount, PLACE, began, False, value, ended)


def test_a_read_of_what_was_written_over_is_found():
    calls = [write(1, b"a", 1, 2), write(2, b"b", 3, 4), read(3, b"a", 5, 6)]
    with pytest.raises(Broken, match="is no register"):
        check_registers(calls, b"")
    calls[1].ended = 7  # it may not have happened yet
    assert check_registers(calls, b"") == 3


def test_what_a_mount_lost_with_its_session_is_excused_to_it_alone():
    lost = write(1, b"a", 1, 2, excused="session ended")
    assert check_registers([lost, read(1, b"a", 3, 4), read(2, b"", 5, 6)], b"")
    with pytest.raises(Broken):
        check_registers([lost, read(2, b"a", 3, 4), read(2, b"", 5, 6)], b"")


def test_what_is_on_its_way_may_be_read_beside_the_writer_only():
    late = write(1, b"a", 1, 9)
    others = [read(1, b"a", 2, 3), read(2, b"", 4, 5)]
    assert check_registers([late, *others], b"")
    with pytest.raises(Broken):
        check_registers([late, read(3, b"a", 2, 3), read(2, b"", 4, 5)], b"")


def appended(value, began, ended):
    return LogCall(1, began, True, value, ended)


def listed(value, began, ended):
    return LogCall(2, began, False, value, ended)


@pytest.mark.parametrize(
    ("reads", "what"),
    [
        ([listed(b"aabb", 5, 6)], None),
        ([listed(b"aaaabb", 5, 6)], "there twice"),
        ([listed(b"aa", 5, 6)], "had been appended"),
        ([listed(b"aabbcc", 5, 6)], "nobody had appended"),
        ([listed(b"aab", 5, 6)], "nobody had appended"),
        ([listed(b"aabb", 5, 6), listed(b"bbaa", 7, 8)], "does not continue"),
    ],
)
def test_a_log_is_read_whole_in_one_order(reads, what):
    calls = [appended(b"aa", 1, 2), appended(b"bb", 3, 4), *reads]
    if what is None:
        assert check_log(calls, 2) == 2
        return
    with pytest.raises(Broken, match=what):
        check_log(calls, 2)
