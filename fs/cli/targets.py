"""`shoal target`, `shoal node` and `shoal rebalance`: which disks the cluster uses, and how they are taken out of use.

What is asked for is checked where it is applied; a command that has to wait for data to move returns at once, and
`shoal target list` and `shoal status` show how far it is. `shoal target add` asks the chunkserver itself: only that
sees the directory.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, Reach, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, print_rows, print_table, say, size
from shoalfs.fs.cli.reasons import stuck_groups
from shoalfs.transport.config import ByteSize
from shoalfs.transport.errors import Overloaded, PeerUnreachable, PosixError, TargetDown, TargetRemoved, UserError
from shoalfs.transport.limits import CHUNK_BYTES_MAX, TARGET_ID_MAX, TARGET_SIZE_BYTES_MAX

if TYPE_CHECKING:
    from shoalfs.chunkserver.messages import AddTarget
    from shoalfs.mds.messages import MdsStatus, Target
    from shoalfs.transport.method import Message

target_app = typer.Typer(help="The disks that chunks are on.", rich_markup_mode=None)
node_app = typer.Typer(help="The chunkservers.", rich_markup_mode=None)
rebalance_app = typer.Typer(help="Moving data to even out how full targets are.", rich_markup_mode=None)

TargetArgument = Annotated[
    int,
    typer.Argument(metavar="TARGET", min=1, max=TARGET_ID_MAX, help="Number of the target, see `shoal target list`."),
]
_ADD_MS: Final = 120_000  # a disk that was another chunkserver's has to be recovered first
_PRESENT: Final = frozenset({"UP", "SYNCING", "DRAINING"})  # its server was there lately

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Name of the chunkserver, see `shoal node list`.")]


@target_app.callback()
def target_group() -> None:
    """The disks that chunks are on."""


@node_app.callback()
def node_group() -> None:
    """The chunkservers."""


@rebalance_app.callback()
def rebalance_group() -> None:
    """Moving data to even out how full targets are."""


# --- targets --------------------------------------------------------------------------------------------------------


@target_app.command("list")
def list_targets(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show every target: its state, how many placement groups it holds, and how many are still leaving it."""
    rows = describe(call(locate(mds, config, state), ask_status))
    if output is Format.TABLE:
        rows = [{**row, "state": f"{row['state']}, draining"} if row["draining_when_back"] else row for row in rows]
    print_rows(output, rows, _COLUMNS, _shown)


@target_app.command("add")
def add_target(
    node: NodeArgument,
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="An empty directory of that machine, best a disk of its own.")
    ],
    limit: Annotated[
        str | None, typer.Option("--size", metavar="SIZE", help="How much to store; else what its disk holds.")
    ] = None,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Have a running chunkserver use one more directory, from now on and after every restart."""
    from shoalfs.chunkserver.messages import AddTarget

    if not os.path.isabs(directory):
        raise UserError(f"{directory}: expected an absolute path, as it is on the machine of {node}")
    request = AddTarget(directory, None if limit is None else _bytes(limit))
    given = call(locate(mds, config, state), partial(_add, node, request))
    if given:
        say(f"{directory} of {node} is target {given}: data is moved to it if others are fuller")
    else:
        say(f"{directory} of {node} is added once the metadata service answers: see `shoal target list`")


async def _add(node: str, request: "AddTarget", operator: Operator) -> int:
    """The number of the new target, 0 if it has none yet. Raises UserError with the reason if it cannot be one."""
    from shoalfs.chunkserver.messages import ADD_TARGET

    chosen = _chosen((await ask_status(operator)).map.targets, lambda t: t.node == node, f"node {node}")
    address = max(chosen, key=lambda target: (target.state.name in _PRESENT, target.id)).address
    try:
        reply = await operator.network.call(address, ADD_TARGET, request, timeout_ms=_ADD_MS)
    except PeerUnreachable as error:
        raise UserError(f"node {node}: its chunkserver does not answer: start it first ({error})") from error
    except (PosixError, TargetDown, TargetRemoved, Overloaded) as error:
        raise UserError(f"node {node}: {error}") from error
    return int(reply.body.target)


def _bytes(text: str) -> int:
    try:
        size_bytes = int(ByteSize.parse(text))
    except ValueError as error:
        raise UserError(f"--size: {error}") from error
    if not CHUNK_BYTES_MAX <= size_bytes <= TARGET_SIZE_BYTES_MAX:
        raise UserError(f"--size: {text}: expected {size(CHUNK_BYTES_MAX)} (one of the largest chunks) or more")
    return size_bytes


@target_app.command("drain")
def drain_target(
    target: TargetArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Move everything off a target. It is read from until all of it is elsewhere, and takes no new data."""
    reach = locate(mds, config, state)
    _say_draining(reach, _change(reach, lambda t: t.id == target, f"target {target}", "DRAINING"))


@target_app.command("resume")
def resume_target(
    target: TargetArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Use a target again that is draining or out. What it lacks by now is copied to it."""
    _change(locate(mds, config, state), lambda t: t.id == target, f"target {target}", "SYNCING")
    say(f"target {target} takes data again")


@target_app.command("remove")
def remove_target(
    target: TargetArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Forget a target that was drained or is out. Refused while any placement group needs it."""
    from shoalfs.mds.messages import Op, RemoveTarget
    from shoalfs.transport.ids import TargetId

    request = RemoveTarget(TargetId(target))
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.REMOVE_TARGET, request))
    say(f"target {target} was removed")


# --- nodes ----------------------------------------------------------------------------------------------------------


@node_app.command("list")
def list_nodes(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show every chunkserver: its rack, and its targets taken together."""
    print_rows(output, by_node(describe(call(locate(mds, config, state), ask_status))), _NODE_COLUMNS, _shown)


@node_app.command("drain")
def drain_node(
    node: NodeArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Move everything off all targets of a chunkserver."""
    reach = locate(mds, config, state)
    _say_draining(reach, _change(reach, lambda t: t.node == node, f"node {node}", "DRAINING"))


@node_app.command("resume")
def resume_node(
    node: NodeArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Use the targets of a chunkserver again."""
    _change(locate(mds, config, state), lambda t: t.node == node, f"node {node}", "SYNCING")
    say(f"node {node} takes data again")


@node_app.command("remove")
def remove_node(
    node: NodeArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Forget all targets of a chunkserver. Refused if any placement group needs one of them."""

    async def remove(operator: Operator) -> None:
        from shoalfs.mds.messages import Op, RemoveTarget

        map_ = (await ask_status(operator)).map
        chosen = _chosen(map_.targets, lambda t: t.node == node, f"node {node}")
        for target in chosen:  # all or none; each is checked again where it is applied
            held = sum(target.id in group.holders for group in map_.groups)
            if held:
                text = f"still holds {held} placement groups: `shoal node drain {node}`, and wait until they have moved"
                raise UserError(f"node {node}: target {target.id} {text}")
        for target in chosen:
            await mutate(operator, Op.REMOVE_TARGET, RemoveTarget(target.id))

    call(locate(mds, config, state), remove)
    say(f"node {node} was removed")


# --- rebalance ------------------------------------------------------------------------------------------------------


@rebalance_app.command("start")
def start(mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Move data again if targets are unevenly full (which is done without being asked, unless it was paused)."""
    _pause(locate(mds, config, state), paused=False)
    say("data is moved while targets are unevenly full")


@rebalance_app.command("pause")
def pause(mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Move nothing to even out targets. Missing copies are made all the same, and draining goes on."""
    _pause(locate(mds, config, state), paused=True)
    say("no data is moved to even out targets")


@rebalance_app.command("status")
def rebalance_status(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show what is moving, and how full the targets are."""
    found = call(locate(mds, config, state), ask_status)
    rows = describe(found)
    fills = [row["fill_percent"] for row in rows if row["state"] == "up" and row["fill_percent"] is not None]
    said = {
        "paused": bool(found.upkeep.rebalance_paused),
        "groups_moving": found.repair.groups_moving,
        "fullest_percent": max(fills, default=None),
        "emptiest_percent": min(fills, default=None),
    }
    if output is Format.JSON:
        print_json(said)
    else:
        print_table(tuple(said), [["-" if value is None else value for value in said.values()]])


def _pause(reach: Reach, *, paused: bool) -> None:
    from shoalfs.mds.messages import Op, Upkeep

    call(reach, lambda operator: mutate(operator, Op.SET_UPKEEP, Upkeep(rebalance_paused=paused)))


# --- what they share ------------------------------------------------------------------------------------------------

_COLUMNS: Final = {
    "id": "target",
    "node": "node",
    "rack": "rack",
    "state": "state",
    "groups": "groups",
    "leaving": "leaving",
    "used_bytes": "used",
    "capacity_bytes": "capacity",
    "fill_percent": "fill %",
    "chunks": "chunks",
    "address": "address",
    "failed": "failed",
}
_NODE_COLUMNS: Final = {
    "node": "node",
    "rack": "rack",
    "states": "targets",
    "groups": "groups",
    "leaving": "leaving",
    "used_bytes": "used",
    "capacity_bytes": "capacity",
    "chunks": "chunks",
}


def describe(found: "MdsStatus") -> list[dict[str, Any]]:
    """One row for each target. ``groups``: those it is a member of; ``leaving``: those that still need what it has."""
    member = Counter(target for group in found.map.groups for target in group.targets)
    leaving = Counter(target for group in found.map.groups for target in group.leaving)
    usage = {entry.target: entry for entry in found.usage}
    rows = []
    for target in found.map.targets:
        seen = usage.get(target.id)
        rows.append(
            {
                "id": target.id,
                "node": target.node,
                "rack": target.rack,
                "state": target.state.name.lower(),
                "draining_when_back": target.draining,
                "groups": member[target.id],
                "leaving": leaving[target.id],
                "used_bytes": None if seen is None else seen.used_bytes,
                "capacity_bytes": target.capacity_bytes,
                "fill_percent": None if seen is None else _percent(seen.used_bytes, seen.capacity_bytes),
                "chunks": None if seen is None else seen.chunks,
                "address": target.address,
                "failed": "" if seen is None else seen.failed,
            }
        )
    return rows


def _percent(used_bytes: int, capacity_bytes: int) -> float | None:
    return round(100 * used_bytes / capacity_bytes, 1) if capacity_bytes else None


def by_node(targets: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each node, with its targets' figures added up; ``states``: how many are in which state."""
    nodes: dict[str, list[dict[str, Any]]] = {}
    for row in targets:
        nodes.setdefault(row["node"], []).append(row)
    added = ("groups", "leaving", "used_bytes", "capacity_bytes", "chunks")
    return [
        {
            "node": node,
            "rack": rows[-1]["rack"],
            "states": dict(sorted(Counter(row["state"] for row in rows).items())),
            **{name: sum(row[name] or 0 for row in rows) for name in added},
        }
        for node, rows in sorted(nodes.items())
    ]


def _shown(name: str, value: Any) -> object:
    if value is None or value == "":
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{count} {state}" for state, count in value.items())
    return size(value) if name.endswith("_bytes") else value


def _say_draining(reach: Reach, targets: "Sequence[Target]") -> None:
    numbers = ", ".join(str(target.id) for target in targets)
    say(f"draining target {numbers}: done when `shoal target list` shows 0 groups and 0 leaving; then remove it")
    found = call(reach, ask_status)
    chosen = {target.id for target in targets}
    for target in found.map.targets:
        if target.id in chosen and target.draining:
            say(f"target {target.id} is down: what it has is copied from others as far as they have it, else start it")
    for reason in stuck_groups(found, chosen):
        say(reason)


def _change(reach: Reach, wanted: Any, what: str, state: str) -> "Sequence[Target]":
    """Bring the targets for which ``wanted`` holds into a state. Returns them. Raises UserError if there is none."""

    async def change(operator: Operator) -> "Sequence[Target]":
        from shoalfs.mds.messages import Op, SetTargetState, TargetState

        new: TargetState = TargetState[state]
        chosen = _chosen((await ask_status(operator)).map.targets, wanted, what)
        refused: list[str] = []
        for target in chosen:
            in_use = new is TargetState.SYNCING and target.state is TargetState.UP
            replaced = new is TargetState.DRAINING and target.state is TargetState.OUT
            if in_use or replaced:
                continue
            try:
                await mutate(operator, Op.SET_TARGET_STATE, SetTargetState(target.id, new))
            except UserError as error:
                refused.append(str(error))  # the other targets of a node are changed all the same
        if refused:
            raise UserError("; ".join(refused))
        return chosen

    return call(reach, change)


def _chosen(targets: "Iterable[Target]", wanted: Any, what: str) -> "list[Target]":
    chosen = [target for target in targets if wanted(target)]
    if not chosen:
        raise UserError(f"{what}: there is none in the cluster map: see `shoal target list`")
    return chosen


async def ask_status(operator: Operator) -> "MdsStatus":
    """The leader's status."""
    from shoalfs.mds.messages import STATUS, GetStatus

    return (await operator.leader.call(STATUS, GetStatus())).body


async def mutate(operator: Operator, op: int, request: "Message") -> None:
    """One change by an administrator. Raises UserError with the reason if it is refused."""
    import msgspec

    from shoalfs.mds.messages import MUTATE, Command, Mutate
    from shoalfs.transport.ids import SessionId

    command = Command(0, 0, op, msgspec.Raw(msgspec.msgpack.encode(request)))
    (outcome,) = (await operator.leader.call(MUTATE, Mutate(SessionId(0), (command,)))).body.outcomes
    if outcome.code:
        raise UserError(outcome.text or f"refused with code {outcome.code}")
