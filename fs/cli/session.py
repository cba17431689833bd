"""`shoal session list` and `shoal session evict`: which clients there are, and how to be rid of one."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_rows, say
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus

EVICT_MS: Final = 40_000  # a client that does not answer is waited for until its lease is over: at most 20 s
_COLUMNS: Final = {
    "id": "session",
    "client": "client",
    "opens": "opens",
    "leases": "leases",
    "renewed_ms_ago": "last seen ms",
}

app = typer.Typer(help="The clients of the cluster.", rich_markup_mode=None)

SessionArgument = Annotated[int, typer.Argument(metavar="ID", min=1, max=(1 << 63) - 1, help="Number of the session.")]


@app.callback()
def group() -> None:
    """The clients of the cluster."""


@app.command("list")
def list_(
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show each client: what it has open, how many leases it holds, when it was last heard of."""

    async def ask(operator: Operator) -> "MdsStatus":
        from shoalfs.mds.messages import STATUS, GetStatus

        return (await operator.leader.call(STATUS, GetStatus())).body

    print_rows(output, as_rows(call(locate(mds, config, state), ask)), _COLUMNS)


@app.command()
def evict(
    session: SessionArgument, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """End a session. What its client has not committed is lost, its open files answer EIO, its locks are free. A client
    that answers drops what it caches at once; one that does not is waited for until its lease is over."""

    async def ask(operator: Operator) -> None:
        from shoalfs.mds.leader import Leader
        from shoalfs.mds.messages import EVICT, STATUS, EvictSession, GetStatus
        from shoalfs.transport.ids import SessionId

        known = (await operator.leader.call(STATUS, GetStatus())).body.sessions  # soon, if nobody leads
        if all(told.session != session for told in known):
            raise UserError(f"session {session}: there is none: see `shoal session list`")
        leader = Leader(operator.network, reach.mds, EVICT_MS)
        await leader.call(EVICT, EvictSession(SessionId(session)), EVICT_MS)

    reach = locate(mds, config, state)
    call(reach, ask)
    say(f"session {session} is ended")


def as_rows(found: "MdsStatus") -> list[dict[str, Any]]:
    """Keys are only ever added."""
    return [
        {
            "id": s.session,
            "client": s.client,
            "opens": s.opens,
            "renewed_ms_ago": s.renewed_ms_ago,
            "leases": s.leases,
        }
        for s in found.sessions
    ]
