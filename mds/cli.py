"""`shoal mds run` and `shoal mds join`: one metadata node, of a new group or of one that exists."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from shoalfs.transport import daemon
from shoalfs.transport.config import Address, Config, load
from shoalfs.transport.errors import UserError

if TYPE_CHECKING:
    import trio

    from shoalfs.mds.server import MdsOptions
    from shoalfs.transport.carrier import Carriers

app = typer.Typer(help="The metadata service.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """The metadata service."""


ConfigOption = Annotated[
    str | None, typer.Option("--config", envvar="SHOAL_CONFIG", metavar="FILE", help="Configuration (TOML).")
]
ListenOption = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where to serve.")]
DataDirOption = Annotated[str | None, typer.Option(metavar="DIR", help="Where the metadata are kept.")]


@app.command()
def run(
    context: typer.Context,
    config: ConfigOption = None,
    node: Annotated[int | None, typer.Option(help="Number of this node, 1 to 255, unless it joined.")] = None,
    listen: ListenOption = None,
    data_dir: DataDirOption = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of a chunk, for a new cluster.")] = None,
) -> None:
    """Run one metadata node in the foreground, until SIGTERM. A flag wins over the configuration file.

    An empty data directory makes a new group. To take the place of a node that lost its disk, use `shoal mds join`.
    """
    chosen = load(
        config,
        {"mds.node": node, "mds.listen": listen, "mds.data_dir": data_dir, "mds.replicas": replicas},
    )
    from shoalfs.mds import server
    from shoalfs.transport.carrier import Carriers

    daemon.run(
        partial(server.run, server_options(chosen), Carriers.standard(chosen.tls.paths, chosen.net.transport)),
        context.obj,
    )


@app.command()
def join(
    context: typer.Context,
    mds: Annotated[
        list[str] | None,
        typer.Option("--mds", metavar="ADDRESS", help="A node of the group that exists; may be repeated."),
    ] = None,
    config: ConfigOption = None,
    listen: ListenOption = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where the others reach it; else where it serves.")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make this machine a new node of a group that exists, and run it. It gets a number of its own, fetches everything,
    and votes once it has caught up. With a directory that has joined already, the same as run."""
    chosen = load(config, {"mds.listen": listen, "mds.data_dir": data_dir})
    known = chosen.mount.mds or tuple(chosen.mds.peers.values())
    asked = [str(_address("--mds", text)) for text in mds] if mds else [str(address) for address in known]
    if not asked:
        raise UserError("--mds: none: name a node of the group that this one is to join")
    options = server_options(chosen)
    address = str(_address("--advertise", advertise)) if advertise else options.listen
    from shoalfs.transport.carrier import Carriers

    carriers = Carriers.standard(chosen.tls.paths, chosen.net.transport)
    daemon.run(partial(_join_and_run, asked, address, options, carriers), context.obj)


@app.command()
def rebuild(
    headers: Annotated[list[str], typer.Argument(metavar="FILE...", help="From `shoal chunkserver headers`.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of a chunk.")] = None,
) -> None:
    """When all metadata and dumps are lost: make files of what the chunks' headers say, in /lost+found. Names, owners
    and small files are not in them. Nothing is deleted from the chunkservers until `shoal gc release`."""
    chosen = load(config, {"mds.data_dir": data_dir, "mds.replicas": replicas})
    from pathlib import Path

    from shoalfs.mds import rebuild as making
    from shoalfs.mds.machine import Layout
    from shoalfs.mds.messages import Pool
    from shoalfs.mds.server import founders_of
    from shoalfs.transport.ids import PoolId

    options = server_options(chosen)
    found = making.Headers()
    for name in headers:
        try:
            with open(name, "rb") as file:
                making.read(found, file, name)
        except OSError as error:
            raise UserError(f"rebuild: {name}: {error.strerror}") from error
    pool = Pool(PoolId(1), "default", options.replicas, options.min_ack)
    layout = Layout(options.chunk_bytes, options.inline_bytes)
    made = making.rebuild(found, Path(options.data_dir), pool, layout, founders_of(options))
    typer.echo(f"{options.data_dir}: {made.files} files of {made.chunks} chunks are in /lost+found")
    if made.left_out:
        typer.echo(f"{made.left_out} chunks are left out: their copies differ, or of their fragments there are too few")


def load_dump(
    source: Annotated[str, typer.Argument(metavar="FILE", help="What `shoal dump` wrote; -: standard input.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make the store of a metadata node from a dump, in an empty data directory; then start it as usual. Nothing is
    deleted from the chunkservers until `shoal gc release`."""
    chosen = load(config, {"mds.data_dir": data_dir})
    import contextlib
    import sys
    from pathlib import Path

    from shoalfs.mds.load import load as load_into
    from shoalfs.mds.server import founders_of

    options = server_options(chosen)
    with contextlib.ExitStack() as stack:
        try:
            file = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        except OSError as error:
            raise UserError(f"load: {source}: {error.strerror}") from error
        header = load_into(file, Path(options.data_dir), options.cluster_id, founders_of(options))
    typer.echo(f"{options.data_dir} holds the metadata of cluster {header.cluster_id} as of entry {header.index}")
    typer.echo("no chunk is deleted until `shoal gc release`: check first, with `shoal fsck`")


async def _join_and_run(
    asked: list[str],
    address: str,
    options: "MdsOptions",
    carriers: "Carriers",
    *,
    task_status: "trio.TaskStatus[str]",
) -> None:
    from pathlib import Path

    from shoalfs.mds import joining, server

    await joining.join(Path(options.data_dir), asked, address, options.cluster_id, carriers)
    await server.run(options, carriers, task_status=task_status)


def _address(flag: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def server_options(config: Config) -> "MdsOptions":
    """The node's options as its server takes them."""
    from shoalfs.mds.backup import BackupOptions
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
        read_lease=table.read_lease,
        session_ttl_ms=table.session_ttl_ms,
        target_out_ms=table.target_out_ms,
        repair_bytes_per_s=int(table.repair_bytes_per_s),
        scrub_period_ms=table.scrub_period_ms,
        scrub_bytes_per_s=int(table.scrub_bytes_per_s),
        backup=BackupOptions(table.backup_dir, table.backup_interval_ms, table.backup_keep),
    )
