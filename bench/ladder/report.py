"""What was measured, as a table, as bars in the terminal, as JSON and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_BAR_CHARACTERS: Final = 40


@dataclass(frozen=True)
class Row:
    """The best round of one workload on one place."""

    workload: str
    unit: str
    place: str
    per_s: float
    ratio: float  # to the first place
    p50_ms: float | None
    p99_ms: float | None
    cpu_s_per_1000: float  # of the whole machine, per 1,000 of what is counted
    resident_mib: float | None


def table(rows: Sequence[Row]) -> str:
    head = f"{'workload':<26}{'place':<22}{'rate':>10} {'unit':<11}{'ratio':>6}{'p50 ms':>9}{'p99 ms':>9}"
    lines = [f"{head}{'cpu s/1000':>12}{'MiB':>7}"]
    last = ""
    for row in rows:
        name = row.workload if row.workload != last else ""
        last = row.workload
        lines.append(
            f"{name:<26}{row.place[-21:]:<22}{row.per_s:>10,.{0 if row.per_s >= 10 else 2}f} {row.unit:<11}"
            f"{row.ratio:>6.2f}{_number(row.p50_ms):>9}{_number(row.p99_ms):>9}{row.cpu_s_per_1000:>12.3f}"
            f"{_number(row.resident_mib, 0):>7}"
        )
    return "\n".join(lines)


def bars(rows: Sequence[Row]) -> str:
    """Ratios to the first place; a full bar is 1 or more."""
    lines = []
    first = rows[0].place if rows else ""
    for row in rows:
        if row.place == first:
            continue
        filled = min(_BAR_CHARACTERS, round(row.ratio * _BAR_CHARACTERS))
        lines.append(f"{row.workload:<26}{row.place[-16:]:<17}|{'#' * filled:<{_BAR_CHARACTERS}}| {row.ratio:.2f}")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{name: getattr(row, name) for name in Row.__dataclass_fields__} for row in rows]


def picture(rows: Sequence[Row], path: Path, title: str) -> None:
    """Horizontal bars of the ratios, one group a workload. Raises SystemExit where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("bench: --png: matplotlib is not installed: pip install -e '.[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(dict.fromkeys(row.place for row in rows))
    workloads = list(dict.fromkeys(row.workload for row in rows))
    ratios = {(row.workload, row.place): row.ratio for row in rows}
    height = 0.8 / len(places)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(workloads) * len(places)), layout="constrained")
    for number, place in enumerate(places):
        at = [index + number * height for index in range(len(workloads))]
        found = [ratios.get((workload, place), 0.0) for workload in workloads]
        axes.barh(at, found, height, label=place)
    axes.set_yticks([index + 0.4 - height / 2 for index in range(len(workloads))], workloads)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"rate as a ratio to {places[0]}")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _number(value: float | None, decimals: int = 3) -> str:
    return "" if value is None else f"{value:,.{decimals}f}"
