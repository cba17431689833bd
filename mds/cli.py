"""`shoal mds run`: one metadata node."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from shoalfs.transport import daemon
from shoalfs.transport.config import Config, load

if TYPE_CHECKING:
    from shoalfs.mds.server import MdsOptions

app = typer.Typer(help="The metadata service.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The metadata service."""


@app.command()
def run(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="SHOAL_CONFIG", metavar="FILE", help="Configuration (TOML)."),
    ] = None,
    node: Annotated[int | None, typer.Option(help="Number of this node in the group, 1 to 255.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where to serve.")] = None,
    data_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Where the metadata are kept.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of a chunk, for a new cluster.")] = None,
) -> None:
    """Run one metadata node in the foreground, until SIGTERM. A flag wins over the configuration file."""
    chosen = load(
        config,
        {"mds.node": node, "mds.listen": listen, "mds.data_dir": data_dir, "mds.replicas": replicas},
    )
    from shoalfs.mds import server
    from shoalfs.transport.carrier import Carriers

    daemon.run(partial(server.run, server_options(chosen), Carriers.standard(chosen.tls.paths)), context.obj)


def server_options(config: Config) -> "MdsOptions":
    """The node's options as its server takes them."""
    from shoalfs.mds.server import MdsOptions

    table = config.mds
    return MdsOptions(
        node=table.node,
        listen=str(table.listen),
        members={number: str(address) for number, address in table.peers.items()} or None,
        data_dir=table.data_dir,
        cluster_id=config.cluster.id_bytes,
        replicas=table.replicas,
        min_ack=table.acknowledgements,
        chunk_bytes=int(table.chunk_bytes),
        inline_bytes=int(table.inline_bytes),
        garbage_grace_ms=table.garbage_grace_ms,
    )
