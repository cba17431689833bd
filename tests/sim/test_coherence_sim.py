"""Leases in the simulated world: whatever breaks, no mount is told what is no longer true; and the checker that says so
finds planted mistakes.

SHOAL_SIM_SEEDS=200 runs more histories than the default; SHOAL_SIM_FIRST says where to begin.
"""

import os

import pytest
import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.fs.leases import LeaseCache
from shoalfs.mds.coherence import Admission, Coherence
from shoalfs.mds.leases import LeaseTable
from shoalfs.mds.sessions import SessionTable
from sim.coherence_world import simulate
from sim.hunt import hunt

SEEDS = range(int(os.environ.get("SHOAL_SIM_FIRST", "0")), int(os.environ.get("SHOAL_SIM_SEEDS", "8")))
SECONDS = 20.0
EVERYTHING = ("reset", "cut", "stop", "leader")
PLANTED_SEEDS = 25
FOUND_BY = {
    "no_grace_after_a_new_leader": 5,
    "a_late_answer_is_kept": 1,
    "the_kernel_keeps_for_minutes": 2,
    "nothing_is_dropped_for_a_new_leader": 2,
    "an_old_admission_is_good_under_the_next_leader": 17,
}


@pytest.mark.parametrize("seed", SEEDS)
def test_no_mount_is_told_what_is_no_longer_true(seed: int):
    world = simulate(seed, SECONDS, EVERYTHING)
    assert world.counts["questions"] > 300, world.counts
    assert world.counts["kernel"], "nothing was answered from a cache"
    assert world.counts["mutations"] > 40


def test_with_nothing_broken_nothing_fails():
    world = simulate(1, SECONDS, ("none",))
    assert set(world.counts) == {"questions", "kernel", "mutations", "PosixError", "none"}


# --- planted mistakes ------------------------------------------------------------------------------------------------


def acknowledged_before_it_is_dropped(patch: pytest.MonkeyPatch) -> None:
    real = Coherent.handle_invalidate

    async def early(self, call, request, payload):
        trio.lowlevel.spawn_system_task(late, self, call, request, payload)
        return type(await real(self, call, type(request)(request.session), payload))()

    async def late(self, call, request, payload):
        await trio.sleep(0.05)
        await real(self, call, request, payload)

    patch.setattr(Coherent, "handle_invalidate", early)


def leased_while_it_is_being_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseTable, "_mark", lambda self, touched: None)
    patch.setattr(LeaseTable, "end", lambda self, change: None)


def no_grace_after_a_new_leader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionTable, "in_grace", lambda self, besides: False)


def a_late_answer_is_kept(patch: pytest.MonkeyPatch) -> None:
    real = LeaseCache.ask

    def ask(self):
        asking = real(self)
        self._asking.discard(asking)
        return asking

    patch.setattr(LeaseCache, "ask", ask)


def a_silent_session_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    real = Coherence._wait_recalled

    async def impatient(self, change):
        with trio.move_on_after(0.5):
            await real(self, change)

    patch.setattr(Coherence, "_wait_recalled", impatient)


def the_kernel_keeps_for_minutes(patch: pytest.MonkeyPatch) -> None:
    real = Coherent.left_s
    patch.setattr(Coherent, "left_s", lambda self: 300.0 if real(self) else 0.0)


def names_are_not_recalled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LeaseTable, "_recall_name", lambda self, recall, holder, name, changer, now_ms: None)


def a_lost_answer_is_not_doubted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("shoalfs.fs.coherent.doubtful", lambda request: (set(), set()))


def nothing_is_dropped_for_a_new_leader(patch: pytest.MonkeyPatch) -> None:
    async def meet(self):
        await trio.lowlevel.checkpoint()

    patch.setattr(Coherent, "meet_new_leader", meet)


def an_old_admission_is_good_under_the_next_leader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Coherence, "is_over", property(lambda self: False))
    patch.setattr(Admission, "is_valid", lambda self: True)


@pytest.mark.parametrize(
    "plant",
    [
        acknowledged_before_it_is_dropped,
        leased_while_it_is_being_changed,
        no_grace_after_a_new_leader,
        a_late_answer_is_kept,
        a_silent_session_is_not_waited_for,
        the_kernel_keeps_for_minutes,
        names_are_not_recalled,
        a_lost_answer_is_not_doubted,
        nothing_is_dropped_for_a_new_leader,
        an_old_admission_is_good_under_the_next_leader,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_mistake_is_found(plant, monkeypatch: pytest.MonkeyPatch):
    plant(monkeypatch)
    name = plant.__name__
    hunt(name, lambda seed: simulate(seed, SECONDS, EVERYTHING), PLANTED_SEEDS, FOUND_BY.get(name, 0))
