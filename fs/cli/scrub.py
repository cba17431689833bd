"""`shoal scrub`: verify every copy of every chunk, now; and how far that is."""

import time
from typing import TYPE_CHECKING, Any

import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, StateOption, call, locate
from shoalfs.fs.cli.output import Format, OutputOption, print_json, print_table, say, size
from shoalfs.fs.cli.targets import ask_status, mutate

if TYPE_CHECKING:
    from shoalfs.mds.messages import MdsStatus

app = typer.Typer(help="Verifying everything that is stored.", rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Verifying everything that is stored."""


@app.command()
def start(mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None) -> None:
    """Have every target verify all that it holds, from the beginning. What is damaged is repaired."""
    from shoalfs.mds.messages import NOW, Op, Upkeep

    request = Upkeep(scrub_requested_ns=NOW)
    call(locate(mds, config, state), lambda operator: mutate(operator, Op.SET_UPKEEP, request))
    say("every target verifies what it holds: see `shoal scrub status`")


@app.command()
def status(
    output: OutputOption = Format.TABLE, mds: MdsOption = None, config: ConfigOption = None, state: StateOption = None
) -> None:
    """Show for each target how far it is, when it last was through, and what it found."""
    rows = describe(call(locate(mds, config, state), ask_status))
    if output is Format.JSON:
        print_json(rows)
        return
    print_table(
        ("target", "node", "state", "chunks", "read", "damaged", "last finished"),
        [
            (r["target"], r["node"], r["state"], r["chunks"], size(r["bytes"]), r["damaged"], _date(r["finished_ns"]))
            for r in rows
        ],
    )


def describe(found: "MdsStatus") -> list[dict[str, Any]]:
    """One row for each target that was heard of. ``state``: "asked for" until it begins the round that was asked for,
    "running", or "idle"."""
    nodes = {target.id: target.node for target in found.map.targets}
    asked_ns = found.upkeep.scrub_requested_ns or 0
    rows = []
    for scrub in found.scrubs:
        report = scrub.report
        waiting = report.requested_ns != asked_ns
        rows.append(
            {
                "target": scrub.target,
                "node": nodes[scrub.target],
                "state": "asked for" if waiting else "running" if report.began_ns else "idle",
                "chunks": report.chunks,
                "bytes": report.bytes,
                "damaged": report.damaged,
                "began_ns": report.began_ns,
                "finished_ns": report.finished_ns,
            }
        )
    return rows


def _date(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9)) if at_ns else "never"
