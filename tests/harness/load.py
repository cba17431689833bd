"""The verifying workload as a process that a test starts, watches and stops."""

import signal
import subprocess
import sys
from pathlib import Path

from harness import workload
from harness.cluster import wait_until


class Workload:
    """The workload program at work on a mount, with its journal outside of it."""

    def __init__(self, tree: Path, journal: Path) -> None:
        self.tree = tree
        self.journal = journal
        command = [sys.executable, workload.__file__, str(tree), str(journal), "1"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    @property
    def done(self) -> int:
        """How many operations it was told have succeeded."""
        return workload.done_count(self.journal)

    def wait_progress(self, operations: int) -> None:
        """Return when so many more have succeeded."""
        goal = self.done + operations
        wait_until(lambda: self.done >= goal or self.process.poll() is not None, f"{goal} operations", 45.0)
        assert self.process.poll() is None, f"the workload got an error: {self.process.stderr.read()}"

    def end(self) -> None:
        """End it between two operations, unless an error has ended it already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=45.0)

    def stop(self) -> None:
        """End it between two operations; it must not have met an error."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=45.0)
        assert self.process.returncode == 0, f"the workload got an error: {said}"

    def verify(self) -> None:
        """All that it was promised is there."""
        assert workload.verify(self.tree, self.journal) >= 20
