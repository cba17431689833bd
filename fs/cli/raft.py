"""`shoal raft status`, `shoal mds leave` and `shoal mds transfer-leader`: the metadata group from outside.

The leader decides what may be changed; what is shown of each member is what that member says of itself, and how far it
is behind is what the leader knows.
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, print_table, say
from shoalfs.transport.limits import NODE_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoalfs.mds.group_messages import GroupStatus

_ASK_MS: Final = 2_000  # a member that does not answer by then counts as down

app = typer.Typer(help="The replicated log of the metadata service.", rich_markup_mode=None)

NodeArgument = Annotated[int, typer.Argument(metavar="NODE", min=1, max=NODE_MAX, help="Number of the metadata node.")]


@app.callback()
def group() -> None:
    """The replicated log of the metadata service."""


@app.command()
def status(
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show terms, indices, lag and lease of each metadata node. Exit code 0 if all answer and one leads, else 1."""
    reach = locate(mds, config, state)
    seen = call(reach, partial(ask, addresses=reach.mds))
    rows = describe(seen)
    if output is Format.JSON:
        print_json(rows)
    else:
        print_table(_COLUMNS, [[row[name] if row[name] is not None else "-" for name in _FIELDS] for row in rows])
    if not all(row["state"] in ("leader", "voter") for row in rows) or not any(row["lease_ms"] for row in rows):
        raise typer.Exit(1)


def leave(node: NodeArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Remove a metadata node, dead or alive, from the group. Its number is never used again."""

    async def ask_leader(operator: Operator) -> None:
        from shoalfs.mds.group_messages import LEAVE, Leave
        from shoalfs.transport.ids import NodeId

        await operator.leader.call(LEAVE, Leave(NodeId(node)))

    call(locate(mds, config, state), ask_leader)
    say(f"node {node} was removed from the metadata group")


def transfer_leader(
    node: NodeArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Let another metadata node lead, without a pause that clients would notice."""

    async def ask_leader(operator: Operator) -> None:
        from shoalfs.mds.group_messages import TRANSFER_LEADER, TransferLeader
        from shoalfs.transport.ids import NodeId

        await operator.leader.call(TRANSFER_LEADER, TransferLeader(NodeId(node)))

    call(locate(mds, config, state), ask_leader)
    say(f"leadership was handed to node {node}")


async def ask(operator: Operator, *, addresses: tuple[str, ...]) -> "dict[int, GroupStatus | None]":
    """What each member says, None for those that do not answer. Raises PeerUnreachable if nobody does."""
    import trio

    from shoalfs.transport.errors import PeerUnreachable

    first: list[GroupStatus] = []
    for address in addresses:
        first += [answer for answer in [await _ask_one(operator, address)] if answer is not None]
    if not first:
        raise PeerUnreachable(f"no metadata node answers at {', '.join(addresses)}")
    latest = max((answer.members for answer in first), key=lambda members: members.index)
    seen: dict[int, GroupStatus | None] = {}

    async def note(node: int, address: str) -> None:
        seen[node] = await _ask_one(operator, address)

    async with trio.open_nursery() as nursery:
        for member in latest.members:
            nursery.start_soon(note, member.node, member.client_address)
    seen.update({answer.node: answer for answer in first if answer.node in seen})
    return seen


async def _ask_one(operator: Operator, address: str) -> "GroupStatus | None":
    from shoalfs.mds.group_messages import GET_GROUP, GetGroup
    from shoalfs.transport.errors import DeadlineExceeded, PeerUnreachable

    try:
        return (await operator.network.call(address, GET_GROUP, GetGroup(), timeout_ms=_ASK_MS)).body
    except (PeerUnreachable, DeadlineExceeded):
        return None


_FIELDS: Final = (
    "node", "address", "state", "term", "base_index", "last_index", "commit_index", "applied_index", "lag", "lease_ms",
)  # fmt: skip
_COLUMNS: Final = ("NODE", "ADDRESS", "STATE", "TERM", "BASE", "LAST", "COMMIT", "APPLIED", "LAG", "LEASE MS")


def describe(seen: "Mapping[int, GroupStatus | None]") -> list[dict[str, Any]]:
    """One row for each member. ``state`` is leader, voter, learner, "needs snapshot" or down; ``lag`` is in entries,
    None if it is not known."""
    answers = [answer for answer in seen.values() if answer is not None]
    leaders = [answer for answer in answers if answer.leader == answer.node]
    leader = max(leaders, key=lambda answer: answer.term, default=None)
    members = max((answer.members for answer in answers), key=lambda members: members.index)
    lag: dict[int, int] = {}
    behind: set[int] = set()
    if leader is not None:
        lag = {int(f.node): leader.last_index - f.match_index for f in leader.followers} | {int(leader.node): 0}
        behind = {int(f.node) for f in leader.followers if f.needs_snapshot}
    rows = []
    for member in members.members:
        answer = seen.get(member.node)
        if answer is None:
            word = "down"
        elif leader is not None and member.node == leader.node:
            word = "leader"
        elif member.node in behind:
            word = "needs snapshot"
        else:
            word = "voter" if member.is_voter else "learner"
        row: dict[str, Any] = {"node": member.node, "address": member.client_address, "state": word}
        for name in ("term", "base_index", "last_index", "durable_index", "commit_index", "applied_index", "lease_ms"):
            row[name] = None if answer is None else getattr(answer, name)
        rows.append(row | {"lag": lag.get(member.node), "is_voter": member.is_voter})
    return rows
