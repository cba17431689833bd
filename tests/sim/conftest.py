"""The simulated disks of a test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.bounds import small_bounds
from sim.seeds import simulated_disk


@pytest.fixture
def directory() -> Iterator[Path]:
    path = simulated_disk()
    with small_bounds():
        yield path
    shutil.rmtree(path)
