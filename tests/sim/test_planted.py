"""Each guard is taken out, and a checker notices: what the simulator would not find, it does not test.

Only what a checker says counts. A history in which the code under test fails by itself is passed over.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sim import members_run, raft_run, scenarios, state_world
from sim.broken import Broken
from sim.faults import KINDS
from sim.planted import BUGS, planted

History = Callable[[int, Path], Any]

WORLDS: dict[str, History] = {
    **{f"raft-{kind}": partial(raft_run.history, kinds=KINDS[kind]) for kind in KINDS},
    **{f"state-{kind}": partial(state_world.history, kinds=KINDS[kind]) for kind in KINDS},
    **{f"members-{kind}": partial(members_run.history, kinds=members_run.KINDS[kind]) for kind in members_run.KINDS},
    "slow disks": partial(raft_run.history, kinds=("kill", "kill", "kill", "disk")),
    "lease": scenarios.lease,
    "lease, voter restarts": partial(scenarios.lease, restarts=True),
    "vote lost": scenarios.vote_lost,
    "sent again": scenarios.sent_again,
    "late refusal": scenarios.late_refusal,
    "far behind": scenarios.far_behind,
    "large entries": scenarios.large_entries,
    "cut off for long": scenarios.cut_off_for_long,
    "repeated vote": scenarios.repeated_vote,
    "old acknowledgement": scenarios.old_acknowledgement,
    "crash after installation": scenarios.crash_after_installation,
    "two changes": scenarios.two_changes,
    "learners": scenarios.learners,
    "wiped": scenarios.wiped,
    "snapshot over acknowledged entries": scenarios.snapshot_over_acknowledged,
}
SCENARIOS = [name for name in WORLDS if "-" not in name and name != "slow disks"]


def seeds_until_found(name: str, directory: Path) -> tuple[int, str]:
    """How many histories it took, and what the checker said. The worlds take turns."""
    bug = BUGS[name]
    crashes = 0
    with planted(bug):
        for count in range(bug.seeds):
            world = bug.where[count % len(bug.where)]
            try:
                WORLDS[world](count // len(bug.where), directory / "run")
            except Broken as error:
                return count + 1, f"{world}: {error}"[:300]
            except Exception:
                crashes += 1
            finally:
                shutil.rmtree(directory / "run", ignore_errors=True)
    raise AssertionError(f"{name} is not found in {bug.seeds} histories; {crashes} of them ended by themselves")


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, directory: Path, record_property: Callable[[str, object], None]) -> None:
    count, found = seeds_until_found(name, directory)
    record_property("histories", count)
    print(f"{name}: found by history {count}: {found}")


def test_there_are_enough() -> None:
    assert len(BUGS) >= 22
    hazards = {bug.hazard for bug in BUGS.values()}
    assert hazards >= {str(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 17, 19, 20, 21)}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("seed", range(3))
def test_without_a_bug_the_scenario_passes(name: str, seed: int, directory: Path) -> None:
    WORLDS[name](seed, directory)
