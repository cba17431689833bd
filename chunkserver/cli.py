"""`shoal chunkserver run`: one chunkserver with its targets."""

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from shoalfs.transport import daemon
from shoalfs.transport.config import Config, load
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    from shoalfs.chunkserver.server import ServerOptions

app = typer.Typer(help="The servers that hold the files' data.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The servers that hold the files' data."""


@app.command()
def run(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="SHOAL_CONFIG", metavar="FILE", help="Configuration (TOML)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name, and failure domain; else the host's.")] = None,
    listen: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where to serve.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="A directory to keep chunks in; may be repeated.")
    ] = None,
    mds: Annotated[list[str] | None, typer.Option(metavar="ADDRESS", help="A metadata node; may be repeated.")] = None,
) -> None:
    """Run one chunkserver in the foreground, until SIGTERM. A flag wins over the configuration file."""
    chosen = load(
        config,
        {
            "chunkserver.name": name,
            "chunkserver.listen": listen,
            "chunkserver.targets": [{"path": path} for path in target] if target else None,
            "chunkserver.mds": mds or None,
        },
    )
    from shoalfs.chunkserver import server
    from shoalfs.transport.carrier import Carriers

    daemon.run(
        partial(server.run, server_options(chosen, config), Carriers.standard(chosen.tls.paths, chosen.net.transport)),
        context.obj,
    )


@app.command()
def headers(
    target: Annotated[str, typer.Argument(metavar="DIR", help="A target's directory; its chunkserver must not run.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read all data, and leave out what is damaged.")] = False,
) -> None:
    """Write what the headers of all chunks in DIR say to standard output, for `shoal mds rebuild`. Changes nothing."""
    import sys

    from shoalfs.chunkserver.disk import RealDisk
    from shoalfs.chunkserver.headers import lines

    try:
        for line in lines(RealDisk(), target, deep=deep):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise UserError(f"headers: {target}: {error.strerror}") from error


def server_options(config: Config, path: str | None = None) -> "ServerOptions":
    """The server's options as it takes them, from a configuration that was read from the file at ``path``. Raises
    UserError if targets or metadata nodes are missing."""
    from shoalfs.chunkserver.keeper import TargetOptions
    from shoalfs.chunkserver.server import ServerOptions

    table = config.chunkserver
    if not table.targets:
        raise UserError("chunkserver.targets: none: name a directory with --target or in the configuration")
    if not table.mds:
        raise UserError("chunkserver.mds: none: name a metadata node with --mds ADDRESS or in the configuration")
    added = table.added_targets or (path and f"{path}.targets")
    return ServerOptions(
        node=table.name or socket.gethostname(),
        listen=str(table.listen),
        targets=tuple(
            TargetOptions(target.path, None if target.size is None else int(target.size)) for target in table.targets
        ),
        mds=tuple(map(str, table.mds)),
        advertise=None if table.advertise is None else str(table.advertise),
        cluster_id=config.cluster.id_bytes or None,
        rack=table.rack,
        added_path=os.path.abspath(added) if added else None,
        disk_call_ms_max=table.disk_call_ms_max,
    )
