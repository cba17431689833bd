"""Every call on every kind of name by three users, beside a local filesystem. All of it is in bench/posix_long;
here are some of the names for each form of a call, the same ones each time."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import matrix

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")

EVERY = 29  # a 29th of some 6,000 calls by three users: seconds


@pytest.fixture
def known() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shoal-known-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o711)
        yield Path(directory)


@pytest.mark.parametrize("group", matrix.GROUPS)
def test_errnos_and_effects_are_those_of_a_local_filesystem(mnt: Path, known: Path, group: str):
    found = matrix.differences(mnt, known, matrix.calls(group, every=EVERY))
    assert not found, f"{len(found)} differ:\n" + "\n".join(found[:40])
