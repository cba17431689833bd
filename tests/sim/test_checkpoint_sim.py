"""Checkpoints and a followed log in the simulated world: whatever breaks, a load finds the old checkpoint or the new
one, whole, and what was saved survives; and planted mistakes are found.

SHOAL_SIM_SEEDS=200 runs more histories than the default; SHOAL_SIM_FIRST says where to begin.
"""

import os
from typing import Any

import pytest

from harness.metadata import bounded
from shoalfs.fs.file import FileData
from shoalfs.fs.vfs import Vfs
from shoalfs.mds import touched
from sim.broken import Broken
from sim.checkpoint_world import (
    CHECKPOINT_CAUSES,
    CheckpointCall,
    check_checkpoints,
    simulate_checkpoints,
)
from sim.hunt import hunt

SEEDS = range(int(os.environ.get("SHOAL_SIM_FIRST", "0")), int(os.environ.get("SHOAL_SIM_SEEDS", "4")))
SECONDS = 14.0
PLANTED_SECONDS = 6.0
PLANTED_SEEDS = 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_load_finds_a_whole_checkpoint_whatever_breaks(seed: int):
    counts = simulate_checkpoints(seed, SECONDS, CHECKPOINT_CAUSES).counts
    assert counts["save done"] > 10, counts
    assert counts["load done"] > 20, counts
    assert counts["records"], counts


def test_with_nothing_broken_every_save_and_load_succeeds():
    counts = simulate_checkpoints(1, SECONDS, ()).counts
    assert counts["save done"] > 50, counts
    assert not counts["save unknown"] + counts["load unknown"], counts


def test_power_is_lost_and_the_log_is_followed():
    counts = [simulate_checkpoints(seed, SECONDS, ("power",)).counts for seed in range(2)]
    assert sum(c["power"] for c in counts) > 3
    assert min(c["records"] for c in counts) > 10


Patch = pytest.MonkeyPatch


def an_fsync_does_not_wait_for_disks(patch: Patch) -> None:
    real = FileData.flush

    async def flush(self: Any, *, durable: bool) -> None:
        await real(self, durable=False)

    async def harden(self: Any, *arguments: Any) -> None:
        """Not done."""

    patch.setattr(FileData, "flush", flush)
    patch.setattr(Vfs, "_harden", harden)


def a_rename_is_not_told_to_who_looked_the_name_up(patch: Patch) -> None:
    real = touched.touched_by

    def touched_by(txn: Any, commands: Any) -> Any:
        found = real(txn, commands)
        found.names.clear()
        return found

    patch.setattr("shoalfs.mds.coherence.touched_by", touched_by)


def nothing_is_committed_before_the_rename(patch: Patch) -> None:
    async def nothing(self: Any, *arguments: Any, **options: Any) -> None:
        """Neither an fsync nor a close nor a rename has it done."""

    patch.setattr(Vfs, "_commit_file", nothing)
    patch.setattr(Vfs, "_harden", nothing)


MISTAKES = {
    an_fsync_does_not_wait_for_disks: (("power",), 12),
    a_rename_is_not_told_to_who_looked_the_name_up: ((), 0),
    nothing_is_committed_before_the_rename: (("kill",), 0),
}
"""The faults among which each is looked for, and which history finds it."""


@pytest.mark.parametrize("plant", MISTAKES)
def test_a_planted_mistake_is_found(plant: Any, monkeypatch: Patch):
    plant(monkeypatch)
    causes, first = MISTAKES[plant]

    def history(seed: int) -> None:
        simulate_checkpoints(seed, PLANTED_SECONDS, causes, calm_s=1.0)

    hunt(plant.__name__, history, PLANTED_SEEDS, first)


def test_commands_that_do_little_change_nothing():
    """As if one command could remove a single extent."""
    with bounded(rows_max=1):
        simulate_checkpoints(2, PLANTED_SECONDS, CHECKPOINT_CAUSES)


# --- the checker ------------------------------------------------------------------------------------------------------


def save(value, began, ended):
    return CheckpointCall(1, began, True, value, ended)


def load(value, began, ended):
    return CheckpointCall(2, began, False, value, ended)


def test_a_load_that_goes_back_is_found():
    calls = [save(b"a", 1, 2), save(b"b", 3, 4), load(b"b", 5, 6)]
    assert check_checkpoints(calls) == 3
    with pytest.raises(Broken, match="no register"):
        check_checkpoints([*calls, load(b"a", 7, 8)])
    with pytest.raises(Broken, match="no register"):
        check_checkpoints([*calls, load(b"", 7, 8)])
