"""Random operations on one file against a buffer in memory: on one mount, each on one of two, and by several processes
on files of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import exerciser
from harness.exerciser import SIZE_BYTES_MAX, Exerciser


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_file_is_what_a_buffer_would_be(mnt: Path, seed: int):
    Exerciser(str(mnt / "file"), seed).run(700)


@pytest.mark.parametrize(("size_bytes", "operations"), [(SIZE_BYTES_MAX, 300), (60_000, 300)])
def test_one_file_on_two_mounts_is_what_a_buffer_would_be(mnt: Path, there: Path, size_bytes: int, operations: int):
    Exerciser(str(mnt / "file"), 4, [str(there / "file")], size_bytes).run(operations)


def test_files_of_several_processes_are_not_mixed_up(mnt: Path):
    children = [
        subprocess.Popen([sys.executable, exerciser.__file__, str(mnt / f"file{seed}"), "400", str(seed)])
        for seed in range(10, 14)
    ]
    assert [child.wait(timeout=100) for child in children] == [0] * len(children)
