"""What `shoal fsck` looks at: all of it, also of files that do not fit one answer."""

import json
import os
from pathlib import Path

from harness.cluster import Cluster

EXTENTS = 12_000  # more than one answer of the metadata service lists
STRIDE_BYTES = 8_192


def test_all_extents_of_a_file_with_many_are_verified(cluster: Cluster, mnt: Path):
    with open(mnt / "scattered", "wb", buffering=0) as file:
        for number in range(EXTENTS):
            os.pwrite(file.fileno(), b"%d" % number, number * STRIDE_BYTES)
    report = json.loads(cluster.run("fsck", "--state", cluster.state, "--json"))
    assert report["extents"] >= EXTENTS  # an earlier test's removed file may still have some, for a moment
    assert report["findings"] == []
    with open(mnt / "scattered", "rb") as file:
        for number in range(0, EXTENTS, 997):
            file.seek(number * STRIDE_BYTES)
            assert file.read(8).rstrip(b"\0") == b"%d" % number
