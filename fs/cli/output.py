"""What commands print: tables for people, JSON for programs, on stdout; progress on stderr, only at a
terminal.

rich leaves colours out by itself when NO_COLOR is set or the output is no terminal.
"""

import enum
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # rich takes a tenth of a second to load: only those who print pay for it
    from rich.console import Console
    from rich.progress import Progress


_UNKNOWN = ("-", "?")


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Format, typer.Option("-o", "--output", help="Print a table or JSON.")]


def console() -> "Console":
    """The terminal or file at stdout."""
    from rich.console import Console

    # A table that is piped must not be cut at 80 columns.
    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False, width=None if sys.stdout.isatty() else 200)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Columns whose values are numbers or sizes in every row are set right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title=title, title_justify="left", pad_edge=False, header_style="bold")
    shown = [[str(cell) for cell in row] for row in rows]
    for index, name in enumerate(columns):
        said = [row[index] for row in shown if row[index] not in _UNKNOWN]
        numeric = bool(said) and all(value[:1].isdigit() for value in said)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*map(Text, row))
    console().print(table)


def print_rows(
    output: Format,
    rows: Sequence[Mapping[str, Any]],
    titles: Mapping[str, str],
    shown: Callable[[str, Any], object] = lambda key, value: value,
) -> None:
    """Rows as JSON, whole, or as a table of the keys in ``titles``, whose values ``shown`` makes readable."""
    if output is Format.JSON:
        print_json(rows)
    else:
        print_table(tuple(titles.values()), [[shown(key, row[key]) for key in titles] for row in rows])


def progress() -> "Progress":
    """A progress display on stderr; it shows nothing unless stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def say(line: str) -> None:
    """A step that was taken, for people: on stderr, so that stdout holds nothing but data."""
    typer.echo(line, err=True)


def size(size_bytes: int) -> str:
    """ "1.5 GiB": three digits that people read; the exact number is in the JSON."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
