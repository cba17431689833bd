"""Which histories are run, and where their files are.

SHOAL_SIM_SEEDS=200 runs more histories than the default, SHOAL_SIM_FIRST=100 begins elsewhere; a failure prints the
line that repeats it.
"""

import os
import tempfile
from pathlib import Path

SEEDS = range(int(os.environ.get("SHOAL_SIM_FIRST", "0")), int(os.environ.get("SHOAL_SIM_SEEDS", "12")))


def simulated_disk() -> Path:
    """A new directory, in memory if there is such a place."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="raft-", dir=shared if shared.is_dir() else None))
