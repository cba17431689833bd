"""A directory that is measured: how its caches are emptied, and how much memory its servers take."""

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """``name`` is for tables. ``restart``: a command that takes the filesystem's client down and up again, with empty
    caches of its own; empty if it has none. ``pids``: the processes that serve it."""

    name: str
    path: Path
    restart: str = ""
    pids: tuple[int, ...] = ()

    def make_cold(self) -> None:
        """Empty what can be emptied: the client's caches and the kernel's. Raises SystemExit if the restart fails."""
        if self.restart:
            done = subprocess.run(shlex.split(self.restart), capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"bench: {self.name}: the restart failed: {done.stderr.strip()}")
        drop_kernel_caches()

    def resident_mib(self) -> float | None:
        """Memory of the processes that serve it, as far as they live."""
        total = 0
        for pid in self.pids:
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            except FileNotFoundError:
                continue
            total += pages * os.sysconf("SC_PAGE_SIZE")
        return total / (1 << 20) if total else None


def is_cold_possible() -> bool:
    return os.geteuid() == 0


def drop_kernel_caches() -> None:
    if is_cold_possible():
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")


def parsed(argument: str) -> Place:
    """``NAME=PATH``, or a path. Raises ValueError."""
    name, equals, path = argument.partition("=")
    place = Path(path if equals else argument)
    if not place.is_dir():
        raise ValueError(f"{place}: not a directory: mount it first")
    return Place(name if equals else str(place), place)
