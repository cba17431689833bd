"""`shoal doctor`: whether this machine can mount, serve and use RDMA, and what to do about what it cannot."""

from typing import Annotated

import typer

from shoalfs.fs.cli.cluster import ConfigOption
from shoalfs.fs.cli.output import Format, OutputOption, print_json
from shoalfs.transport.config import load


def doctor(
    config: ConfigOption = None,
    transport: Annotated[
        str | None, typer.Option(metavar="auto|rdma|tcp", help="As if [net] transport said so.")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Look at this machine: FUSE, limits, RDMA devices, who answers. Exit code 1 if something is wrong."""
    from shoalfs.fs.cli.checkup import Mark, examine
    from shoalfs.fs.cli.machine import ThisMachine

    found = load(config, {"net.transport": transport})
    wrong = False
    rows = []
    for line in examine(ThisMachine(), found):
        wrong = wrong or line.mark is Mark.WRONG
        if output is Format.JSON:
            rows.append({"mark": line.mark.value.lower(), "topic": line.topic, "text": line.text, "next": line.next})
            continue
        typer.echo(f"{line.mark.value:5}  {line.topic:13}  {line.text}")
        if line.next:
            typer.echo(f"{'':5}  {'':13}  next: {line.next}")
    if output is Format.JSON:
        print_json(rows)
    if wrong:
        raise typer.Exit(1)
