"""Where the cluster is that a command means, and a connection to it with the rights of an operator.

Looked for in this order: --mds, the mount that a path lies in, --config, --state, the default state
directory.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from shoalfs.fs import mountinfo
from shoalfs.fs.cli.embedded import peers
from shoalfs.fs.cli.state import StateDir
from shoalfs.transport.config import Address, Config, TlsTable, load
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    from shoalfs.mds.leader import Leader
    from shoalfs.transport.carrier import Carriers
    from shoalfs.transport.network import Network

CONFIG_ENV: Final = "SHOAL_CONFIG"
PATIENCE_MS: Final = 5_000  # an operator wants to hear soon that nobody leads; an election takes about a second

ConfigOption = Annotated[
    str | None, typer.Option("--config", envvar=CONFIG_ENV, metavar="FILE", help="Configuration (TOML).")
]
MdsOption = Annotated[
    list[str] | None, typer.Option("--mds", metavar="ADDRESS", help="A metadata node; may be repeated.")
]
StateOption = Annotated[
    str | None, typer.Option("--state", envvar="SHOAL_STATE", metavar="DIR", help="Where `shoal up` keeps its cluster.")
]
T = TypeVar("T")


@dataclass(frozen=True)
class Reach:
    """How a cluster is reached. ``cluster_id`` empty: whichever answers there."""

    mds: tuple[str, ...]
    cluster_id: bytes = b""
    tls: TlsTable = field(default_factory=TlsTable)
    transport: str = "tcp"

    def carriers(self) -> "Carriers":
        """What may be dialled. Raises UserError if a TLS file is missing or wrong."""
        from shoalfs.transport.carrier import Carriers

        return Carriers.standard(self.tls.paths, self.transport)


@dataclass(frozen=True)
class Operator:
    """An open connection: ``leader`` for the metadata service, ``network`` for every other address."""

    network: "Network"
    leader: "Leader"


def locate(mds: list[str] | None, config: str | None, state: str | None, mount: mountinfo.Mount | None = None) -> Reach:
    """The cluster that is meant. Raises UserError, with what to give, if that is not clear."""
    file = load(config) if config is not None else Config()
    if mds:
        return Reach(tuple(_address(text) for text in mds), file.cluster.id_bytes, file.tls, file.net.transport)
    if mount is not None:
        return Reach(mount.mds, file.cluster.id_bytes, file.tls, file.net.transport)
    if config is not None:
        known = file.mount.mds or file.chunkserver.mds or tuple(file.mds.peers.values())
        return Reach(tuple(map(str, known or (file.mds.listen,))), file.cluster.id_bytes, file.tls, file.net.transport)
    return _of_state(StateDir(state))


def call(reach: Reach, work: "Callable[[Operator], Awaitable[T]]") -> T:
    """Run ``work`` with a connection to the cluster. Raises what it raises, and PeerUnreachable."""
    import trio

    async def connected() -> T:
        async with connect(reach) as operator:
            return await work(operator)

    return trio.run(connected)


def own_name() -> str:
    """What an operator's connections are called."""
    return f"shoal:{os.getpid()}"


@asynccontextmanager
async def connect(reach: Reach) -> AsyncIterator[Operator]:
    from shoalfs.mds.leader import Leader
    from shoalfs.mds.messages import ADMIN
    from shoalfs.transport.network import open_network
    from shoalfs.transport.session import Hello

    hello = Hello(cluster_id=reach.cluster_id, role=ADMIN, name=own_name())
    async with open_network(reach.carriers(), hello) as network:
        yield Operator(network, Leader(network, reach.mds, PATIENCE_MS))


def _of_state(state: StateDir) -> Reach:
    record = state.cluster
    if record is None:
        raise UserError(
            f"cluster: {state.path}: no cluster was made here: start one with `shoal up MNT`, "
            "or name another with --mds ADDRESS, --config FILE or --state DIR"
        )
    return Reach(tuple(peers(state, record).values()), bytes.fromhex(record.cluster_id))


def _address(text: str) -> str:
    try:
        return str(Address.parse(text))
    except ValueError as error:
        raise UserError(f"--mds: {error}") from error
