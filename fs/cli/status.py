"""`shoal status`: the cluster on one screen, and one word for how it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import typer

from shoalfs.fs.cli import links
from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate, own_name
from shoalfs.fs.cli.output import Format, OutputOption, console, print_json, print_table, size
from shoalfs.fs.cli.reasons import full_pools, full_targets, is_missed, is_out, notes, stuck_groups, targets_away
from shoalfs.fs.cli.session import as_rows

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus
    from shoalfs.transport.links import Links

_ASK_MS: Final = 2_000  # a member that does not answer by then counts as down


@dataclass(frozen=True)
class Health:
    """``word`` is "healthy", "degraded" (everything can be read and written, with less to spare) or
    "broken"."""

    word: str
    reasons: tuple[str, ...]


def status(
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show how the cluster is. Exit code 0 if all of it is up, 1 if something is down."""
    found, members, told = call(locate(mds, config, state), _ask_all)
    health = assess(found, members)
    if output is Format.JSON:
        print_json(as_json(found, members, health, told))
    else:
        _print(found, members, health, told)
    if health.word != "healthy":
        raise typer.Exit(1)


async def _ask_all(operator: Operator) -> "tuple[MdsStatus, dict[int, bool], dict[links.Server, Links]]":
    found, members = await ask(operator)
    return found, members, await links.ask(operator, links.servers(found, members))


async def ask(operator: Operator) -> "tuple[MdsStatus, dict[int, bool]]":
    """The leader's status, and which members answer. Raises ShoalError if no leader does."""
    import trio

    from shoalfs.mds.messages import STATUS, GetStatus

    found = (await operator.leader.call(STATUS, GetStatus())).body
    up: dict[int, bool] = {}
    async with trio.open_nursery() as nursery:
        for node, address in found.raft.members:
            if node != found.raft.leader:
                nursery.start_soon(partial(_probe, operator, node, address, up))
    up[found.raft.leader] = True
    return found, up


async def _probe(operator: Operator, node: int, address: str, up: dict[int, bool]) -> None:
    """A member that does not lead refuses to answer, which shows that it is there."""
    from shoalfs.mds.messages import STATUS, GetStatus
    from shoalfs.transport.errors import NotLeader, ShoalError

    try:
        await operator.network.call(address, STATUS, GetStatus(), timeout_ms=_ASK_MS)
        up[node] = True
    except NotLeader:
        up[node] = True
    except ShoalError:
        up[node] = False


def assess(found: "MdsStatus", members: Mapping[int, bool]) -> Health:
    """What is wrong, worst first. A group is broken when none of its targets is up, or fewer than it takes fragments:
    its chunks cannot be read."""
    from shoalfs.mds.messages import TargetState

    serving = (TargetState.UP, TargetState.DRAINING, TargetState.SYNCING)
    reading = {t.id for t in found.map.targets if t.state in serving}
    needed = {pool.id: pool.data for pool in found.map.pools}
    broken = [
        group.id
        for group in found.map.groups
        if len({group.place(t) if needed[group.pool] > 1 else 0 for t in reading.intersection(group.holders)})
        < needed[group.pool]
    ]
    reasons: list[str] = []
    if broken:
        reasons.append(
            f"{len(broken)} of {len(found.map.groups)} placement groups have too few targets that are up to be read: "
            "start the chunkservers that are down"
        )
    if not found.map.targets:
        reasons.append("no chunkserver has registered: only small files can be written")
    spare = sum(members.values()) - (len(members) // 2 + 1)
    last = "" if spare > 0 else ": the group cannot lose another"
    reasons += [f"mds {node} does not answer: start it{last}" for node, up in sorted(members.items()) if not up]
    reasons += targets_away(found)
    if found.repair.lost_chunks:
        reasons.append(
            f"{found.repair.lost_chunks} chunks have no good copy within reach: start the servers that are down; "
            "`shoal fsck` names the files"
        )
    missing = found.repair.missing_chunks - found.repair.moving_chunks
    if missing:
        last = f", {found.repair.last_copies} of them from the last good one" if found.repair.last_copies else ""
        reasons.append(f"{missing} copies of chunks are missing and being made{last}")
    reasons += full_targets(found)
    reasons += stuck_groups(found)
    reasons += full_pools(found)
    if found.upkeep.deletions_held:
        reasons.append(f"deletion of chunks is held: {found.upkeep.held_reason}: see `shoal gc status`")
    if not reasons:
        return Health("healthy", ())
    return Health("broken" if broken or not found.map.targets else "degraded", tuple(reasons))


def as_json(
    found: "MdsStatus", members: Mapping[int, bool], health: Health, told: "Mapping[links.Server, Links]"
) -> dict[str, Any]:
    """Everything that the screen shows, exactly. Keys are only ever added."""
    usage = {entry.target: entry for entry in found.usage}
    present = [target for target in found.map.targets if not is_out(target)]
    return {
        "health": health.word,
        "reasons": list(health.reasons),
        "notes": notes(found),
        "cluster_id": found.map.cluster_id.hex(),
        "leader": found.raft.leader,
        "leader_address": found.raft.leader_address,
        "term": found.raft.term,
        "applied_index": found.raft.applied_index,
        "map_epoch": found.map.epoch,
        "members": [
            {"node": node, "address": address, "up": members.get(node, False)} for node, address in found.raft.members
        ],
        "pools": [
            {"id": p.id, "name": p.name, "replicas": p.replicas, "min_ack": p.min_ack, "redundancy": p.redundancy}
            for p in found.map.pools
        ],
        "targets": [
            {
                "id": target.id,
                "node": target.node,
                "address": target.address,
                "state": target.state.name.lower(),
                "epoch": target.epoch,
                "capacity_bytes": target.capacity_bytes,
                "used_bytes": usage[target.id].used_bytes if target.id in usage else None,
                "chunks": usage[target.id].chunks if target.id in usage else None,
                "seen_ms_ago": usage[target.id].seen_ms_ago if target.id in usage else None,
                "failed": usage[target.id].failed if target.id in usage else "",
            }
            for target in found.map.targets
        ],
        "groups": len(found.map.groups),
        "sessions": as_rows(found),
        "inodes": found.inodes,
        "inline_files": found.inline_files,
        "inline_bytes": found.inline_bytes,
        "orphans": found.orphans,
        "garbage_chunks": found.garbage_chunks,
        "trashed": found.trashed,
        "trashed_bytes": found.trashed_bytes,
        "deletions_held": bool(found.upkeep.deletions_held),
        "repair": msgspec.structs.asdict(found.repair),
        "capacity_bytes": sum(target.capacity_bytes for target in present),
        "used_bytes": sum(usage[target.id].used_bytes for target in present if target.id in usage),
        "counters": dict(sorted(found.counters.items())),
        "links": links.as_rows(told, own_name()),
        "links_left_out": links.left_out(told),
    }


def _print(
    found: "MdsStatus", members: Mapping[int, bool], health: Health, told: "Mapping[links.Server, Links]"
) -> None:
    exact = as_json(found, members, health, told)
    colour = {"healthy": "green", "degraded": "yellow", "broken": "red"}[health.word]
    screen = console()
    screen.print(f"[bold {colour}]{health.word}[/]  cluster {exact['cluster_id']}  map epoch {exact['map_epoch']}")
    for reason in health.reasons:
        screen.print(f"  {reason}", markup=False)
    for note in exact["notes"]:
        screen.print(f"  {note}", markup=False)
    screen.print(
        f"namespace  {found.inodes} inodes, {found.inline_files} files inline ({size(found.inline_bytes)}), "
        f"{found.orphans} orphans, {found.garbage_chunks} chunks of garbage, "
        f"{found.trashed} removed files kept{_in_all(found.trashed_bytes)}"
    )
    screen.print(f"storage    {size(exact['used_bytes'])} of {size(exact['capacity_bytes'])} used")
    screen.print(f"redundancy {redundancy(found)}")
    screen.print(f"links      {links.summary(exact['links'], exact['links_left_out'])}\n")
    print_table(
        ("mds", "state", "address"),
        [(m["node"], _role(m, found.raft.leader), m["address"]) for m in exact["members"]],
    )
    screen.print()
    print_table(
        ("pool", "name", "redundancy", "min_ack"),
        [(p["id"], p["name"], p["redundancy"], p["min_ack"]) for p in exact["pools"]],
    )
    screen.print()
    print_table(
        ("target", "node", "state", "used", "capacity", "chunks", "last seen", "address"),
        [
            (
                t["id"],
                t["node"],
                t["state"],
                "?" if t["used_bytes"] is None else size(t["used_bytes"]),
                size(t["capacity_bytes"]),
                "?" if t["chunks"] is None else t["chunks"],
                _ago(t["seen_ms_ago"]),
                t["address"],
            )
            for t in exact["targets"]
        ],
    )
    screen.print()
    print_table(
        ("session", "client", "opens", "leases", "last seen"),
        [(s["id"], s["client"], s["opens"], s["leases"], _ago(s["renewed_ms_ago"])) for s in exact["sessions"]],
    )
    links.show(exact["links"])


def redundancy(found: "MdsStatus") -> str:
    """What is being copied and how long that will take, in one line."""
    repair = found.repair
    away = sum(is_missed(target, found.map) for target in found.map.targets)
    parts = [f"the copies on {away} targets that are down or out do not count"] if away else []
    if not repair.missing_chunks and not repair.groups_moving and repair.checked_percent == 100:
        return ", ".join(parts) or "all copies are there, as far as targets have reported"
    parts.append(f"{repair.missing_chunks} copies to make ({size(repair.missing_bytes)})")
    if repair.moving_chunks:
        parts.append(f"{repair.moving_chunks} of them where groups move to")
    if repair.groups_moving:
        parts.append(f"{repair.groups_moving} groups moving")
    if repair.missing_chunks:
        left = "no estimate yet" if repair.eta_s is None else f"about {repair.eta_s} s left"
        parts.append(f"{size(repair.bytes_per_s)}/s, {left}")
    if repair.checked_percent < 100:
        parts.append(f"{repair.checked_percent} % of the targets compared, there may be more")
    return ", ".join(parts)


def _in_all(trashed_bytes: int | None) -> str:
    if trashed_bytes is None:
        return " (their size is being added up)"
    return f" ({size(trashed_bytes)})" if trashed_bytes else ""


def _role(member: Mapping[str, Any], leader: int) -> str:
    if not member["up"]:
        return "down"
    return "leader" if member["node"] == leader else "follower"


def _ago(ms: int | None) -> str:
    return "not yet" if ms is None else f"{ms / 1000:.1f} s ago"
