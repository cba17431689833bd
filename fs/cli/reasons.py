"""What is wrong with targets and pools, in sentences for operators: what, why, what happens next, what to do. Pure."""

from typing import TYPE_CHECKING

from shoalfs.fs.cli.output import size

if TYPE_CHECKING:
    from collections.abc import Collection

    from shoalfs.mds.messages import Absence, ClusterMap, MdsStatus, Pool, Target


def targets_away(found: "MdsStatus") -> list[str]:
    """Targets that are down, those that are out while groups count on them, and those that are back and are not known
    yet to have everything."""
    from shoalfs.mds.messages import TargetState

    absences = {absence.target: absence for absence in found.absences}
    failures = {entry.target: entry.failed for entry in found.usage}
    stuck = {target for groups in found.stuck for target in groups.targets}  # stuck_groups() tells of them
    reasons: list[str] = []
    for target in found.map.targets:
        if target.draining and not is_missed(target, found.map):
            continue  # see notes()
        if target.state is TargetState.DOWN:
            drains = ", and others take its place: it is draining" if target.draining else ""
            failed = failures.get(target.id, "")
            what = drains or _replaced(absences.get(target.id), failed)
            reasons.append(f"target {target.id} on {target.node} is down{what}")
        elif target.state is TargetState.SYNCING:
            reasons.append(f"target {target.id} on {target.node} is syncing: what it lacks is copied to it")
        elif is_out(target) and target.id not in stuck and (held := _held(target, found.map)):
            reasons.append(f"target {target.id} on {target.node} is out: others take its place in {held} groups")
    return reasons


def _replaced(absence: "Absence | None", failed: str) -> str:
    """``failed``: what its server said of it; empty if it was well."""
    why = f": {failed}" if failed else ""
    if absence is None:
        return why
    since = f" for {duration(absence.away_ms)}{why}"
    remedy = "look at its disk, and start its chunkserver anew" if failed else "start its chunkserver"
    if absence.kept:
        return f"{since}: {remedy}; others do not take its place: {absence.kept}"
    return f"{since}: {remedy}, or others take its place in {duration(absence.replaced_in_ms)}"


def stuck_groups(found: "MdsStatus", only: "Collection[int] | None" = None) -> list[str]:
    """Groups that cannot leave targets that are draining or out. ``only``: if one of these targets is among them."""
    pools = {pool.id: pool for pool in found.map.pools}
    states = {target.id: state_of(target) for target in found.map.targets}
    reasons: list[str] = []
    for stuck in found.stuck:
        if only is not None and not set(only).intersection(stuck.targets):
            continue
        pool = pools[stuck.pool]
        where = ", ".join(f"{target} ({states.get(target, 'gone')})" for target in stuck.targets)
        reasons.append(
            f"{stuck.groups} groups of pool {pool.name} ({pool.redundancy}) cannot leave target {where}: "
            f"too few other targets are up: {_way_out(pool, stuck.lacking)}"
        )
    return reasons


def _way_out(pool: "Pool", lacking: int) -> str:
    more = f"add {lacking} more (`shoal target add`, or another chunkserver)"
    if pool.data == 1 and pool.replicas > lacking:
        return f"{more}, or keep fewer copies (`shoal pool set {pool.name} --replicas {pool.replicas - lacking}`)"
    return f"{more}, or resume a target"


def full_targets(found: "MdsStatus") -> list[str]:
    """Targets that have no room for the copies that they are to make."""
    nodes = {target.id: target.node for target in found.map.targets}
    return [
        f"target {target} on {nodes[target]} is full: copies that it lacks cannot be made: add a target, or "
        "remove files"
        for target in found.repair.full_targets
        if target in nodes
    ]


def notes(found: "MdsStatus") -> list[str]:
    """What goes on by an operator's wish, and what it waits for. Nothing is wrong with it."""
    from shoalfs.mds.messages import TargetState

    told: list[str] = []
    for target in found.map.targets:
        held = _held(target, found.map)
        if target.leaves and not held:
            how = "out" if is_out(target) else "drained"
            told.append(
                f"target {target.id} on {target.node} is {how}, and no group needs it: "
                f"`shoal target remove {target.id}`, or `shoal target resume {target.id}` to use it again"
            )
        elif target.state is TargetState.DRAINING:
            told.append(f"target {target.id} on {target.node} is draining: {held} groups are still to leave it")
    if found.upkeep.rebalance_paused:
        told.append("moving data to even out targets is paused: `shoal rebalance start`")
    return told


def is_missed(target: "Target", map_: "ClusterMap") -> bool:
    """It is down or out, and groups need it."""
    from shoalfs.mds.messages import TargetState

    gone = target.state in (TargetState.DOWN, TargetState.OUT)
    return gone and _held(target, map_) > 0


def _held(target: "Target", map_: "ClusterMap") -> int:
    """How many groups count on it."""
    return sum(target.id in group.holders for group in map_.groups)


def is_out(target: "Target") -> bool:
    from shoalfs.mds.messages import TargetState

    return target.state is TargetState.OUT


def full_pools(found: "MdsStatus") -> list[str]:
    """Pools that are nearly full, and what becomes of removed files."""
    names = {pool.id: pool.name for pool in found.map.pools}
    reasons: list[str] = []
    for full in found.nearly_full:
        text = f"pool {names[full.pool]} is {full.percent} % full: add a target, or remove files"
        if found.upkeep.deletions_held:
            text += "; nothing becomes free while deletion is held (`shoal gc release`)"
        elif found.trashed:
            kept = f" ({size(found.trashed_bytes)})" if found.trashed_bytes else ""
            text += (
                f"; {found.trashed} removed files{kept} are kept, the oldest of them are let go: "
                "`shoal trash purge --all` lets all go"
            )
        elif found.garbage_chunks:
            text += f"; {found.garbage_chunks} chunks of removed files wait for their deletion"
        reasons.append(text)
    return reasons


def state_of(target: "Target") -> str:
    """In a word, or two."""
    return f"{target.state.name.lower()}{', draining' if target.draining else ''}"


def duration(ms: int) -> str:
    """ "45 s", "12 min", "3 h": for people."""
    if ms < 120_000:
        return f"{ms // 1000} s"
    return f"{ms // 60_000} min" if ms < 7_200_000 else f"{ms // 3_600_000} h"
