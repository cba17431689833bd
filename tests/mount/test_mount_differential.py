"""Random calls by several users on the mount and on a local directory: the same results, and the same trees."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import differential

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")


@pytest.fixture
def known() -> Iterator[Path]:
    """A directory of a filesystem with attributes and access control lists, which /tmp need not be."""
    with tempfile.TemporaryDirectory(prefix="shoal-known-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o711)
        yield Path(directory)


def test_the_mount_does_what_a_local_filesystem_does(mnt: Path, known: Path):
    mnt.chmod(0o711)
    differential.run(mnt, known, examples=20, steps=50)
