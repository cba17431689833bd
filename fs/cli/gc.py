"""`shoal gc`: whether chunks that no file uses are deleted, and the brake on deleting many at once."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, say
from shoalfs.fs.cli.targets import ask_status, mutate
from shoalfs.transport.limits import BRAKE_PERCENT_DEFAULT

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus

app = typer.Typer(help="Deleting chunks that no file uses.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Deleting chunks that no file uses."""


@app.command()
def status(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show how many chunks wait for their deletion, and whether it is held. Exit code 1 if it is."""
    found = describe(call(locate(mds, config, state), ask_status))
    if output is Format.JSON:
        print_json(found)
    else:
        held = f"held: {found['reason']}" if found["held"] else "under way"
        typer.echo(f"deletion is {held}")
        typer.echo(f"{found['garbage_chunks']} chunks wait for it")
        typer.echo(f"the brake is at {found['brake_percent']} % of all chunks")
        if found["held"]:
            typer.echo("if these may go: `shoal gc release`")
    if found["held"]:
        raise typer.Exit(1)


@app.command()
def hold(
    reason: Annotated[str, typer.Option(help="Shown to others.")] = "an operator holds it",
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Delete no chunk any more, until it is released. Files can still be removed; their space stays in use."""
    from shoalfs.mds.messages import Op, Upkeep

    request = Upkeep(deletions_held=True, held_reason=" ".join(reason.split()))  # one line wherever it is shown
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_UPKEEP, request))
    say("no chunk is deleted until `shoal gc release`")


@app.command()
def release(mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Go on deleting. What waits for its deletion now does not pull the brake again."""
    from shoalfs.mds.messages import NOW, Op, Upkeep

    request = Upkeep(deletions_held=False, deletions_released_ns=NOW)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_UPKEEP, request))
    say("chunks that no file uses are deleted again")


@app.command()
def brake(
    percent: Annotated[int, typer.Argument(min=1, max=100, help="Of all chunks; 100: no brake.")],
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Set the share of all chunks that may become garbage at once without an operator's word."""
    from shoalfs.mds.messages import Op, Upkeep

    request = Upkeep(brake_percent=percent)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_UPKEEP, request))
    say(f"the brake is at {percent} % of all chunks")


def describe(found: "MdsStatus") -> dict[str, Any]:
    """What `shoal gc status` shows, exactly."""
    upkeep = found.upkeep
    return {
        "held": bool(upkeep.deletions_held),
        "reason": upkeep.held_reason or "",
        "garbage_chunks": found.garbage_chunks,
        "brake_percent": BRAKE_PERCENT_DEFAULT if upkeep.brake_percent is None else upkeep.brake_percent,
        "released_ns": upkeep.deletions_released_ns or 0,
    }
