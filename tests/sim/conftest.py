"""The simulated disks of a test."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from sim.bounds import small_bounds
from sim.seeds import simulated_disk


@pytest.fixture
def directory() -> Iterator[Path]:
    path = simulated_disk()
    with small_bounds():
        yield path
    shutil.rmtree(path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many histories it took to find the planted bugs."""
    counts = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "histories"
    ]
    if counts:
        terminalreporter.write_line(
            f"{len(counts)} planted bugs found: after {median(counts):g} histories in the median, {max(counts)} at most"
        )
