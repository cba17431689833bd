"""Over what the members of a cluster talk, and why: what every server says of the connections that it accepted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shoalfs.fs.cli.output import console, print_table, size

if TYPE_CHECKING:
    from shoalfs.fs.cli.cluster import Operator
    from shoalfs.mds.messages import MdsStatus
    from shoalfs.transport.links import Links, LinkStatus

_ASK_MS: Final = 2_000
_SHOWN_MAX: Final = 40  # on the screen; the JSON has all that the servers tell


@dataclass(frozen=True)
class Server:
    """Who was asked."""

    name: str  # "mds 1", or a chunkserver's
    address: str


def servers(found: "MdsStatus", members: Mapping[int, bool]) -> list[Server]:
    """Everybody who accepts connections and counts as up, each once."""
    from shoalfs.mds.messages import TargetState

    asked = {address: Server(f"mds {node}", address) for node, address in found.raft.members if members.get(node)}
    for target in found.map.targets:
        if target.state not in (TargetState.DOWN, TargetState.OUT):
            asked.setdefault(target.address, Server(target.node, target.address))
    return list(asked.values())


async def ask(operator: "Operator", asked: Sequence[Server]) -> "dict[Server, Links]":
    """What they tell; one that does not answer is missing in it."""
    import trio

    from shoalfs.transport.errors import ShoalError
    from shoalfs.transport.links import LINKS, GetLinks

    told: dict[Server, Links] = {}

    async def one(server: Server) -> None:
        try:
            told[server] = (await operator.network.call(server.address, LINKS, GetLinks(), timeout_ms=_ASK_MS)).body
        except ShoalError:
            return  # `mds` and `target` lines of the same screen say whether it is there

    async with trio.open_nursery() as nursery:
        for server in asked:
            nursery.start_soon(one, server)
    return {server: told[server] for server in asked if server in told}


def as_rows(told: "Mapping[Server, Links]", own_name: str) -> list[dict[str, Any]]:
    """One entry for each connection, without our own. Keys are only ever added."""
    return [
        {
            "server": server.name,
            "server_address": server.address,
            "role": link.role,
            "peer": link.name,
            "carrier": link.carrier,
            "device": link.device,
            "reason": link.reason,
            "counters": dict(sorted(link.counters.items())),
        }
        for server, links in told.items()
        for link in sorted(links.links, key=_order)
        if link.name != own_name
    ]


def left_out(told: "Mapping[Server, Links]") -> int:
    """How many connections the servers had no room to tell of."""
    return sum(links.left_out for links in told.values())


def summary(rows: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """How many connections go over what, in one line."""
    counts = Counter(row["carrier"] for row in rows)
    parts = [f"{count} over {carrier}" for carrier, count in sorted(counts.items())]
    if left_out:
        parts.append(f"{left_out} more")
    return ", ".join(parts) or "none"


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of those between machines: over verbs, or why not. Those over unix sockets were never a question."""
    between = [row for row in rows if row["carrier"] != "unix"]
    if not between:
        return
    console().print()
    print_table(
        ("server", "peer", "over", "bulk", "why not verbs"),
        [
            (
                row["server"],
                f"{row['role']} {row['peer']}",
                f"{row['carrier']} {row['device']}".strip(),
                _bulk(row["counters"]),
                row["reason"],
            )
            for row in between[:_SHOWN_MAX]
        ],
    )
    if len(between) > _SHOWN_MAX:
        console().print(f"{len(between) - _SHOWN_MAX} more: shoal status -o json", markup=False)


def _bulk(counters: Mapping[str, int]) -> str:
    if not counters:
        return ""
    return f"{size(counters['bulk_received_bytes'])} in, {size(counters['bulk_sent_bytes'])} out"


def _order(link: "LinkStatus") -> tuple[str, str]:
    return link.role, link.name
