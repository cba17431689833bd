"""Compiles the extension. Run by hatch_build.py when the package is installed, and by the tests.

Needs what pyfuse3 needs: gcc, pkg-config and libfuse3-dev. Imports nothing of the package, which may not be installed
yet.
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

MODULE = "_fuse_shim"
_PARTS = (
    "askers.c",
    "bare.c",
    "concerned.c",
    "entries.c",
    "fuse_shim.c",
    "granted.c",
    "made_files.c",
    "makes.c",
    "name_table.c",
    "names.c",
    "node_table.c",
    "open_table.c",
    "opens.c",
    "serve.c",
)
SOURCES = tuple(Path(__file__).with_name(name) for name in _PARTS)


def compile_shim(directory: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile the extension into ``directory``. Raises CalledProcessError or OSError.

    Written beside its place and moved there, so that a running mount keeps the file that it has mapped.
    """
    found = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    target = directory / f"{MODULE}{sysconfig.get_config_var('EXT_SUFFIX')}"
    made = target.with_suffix(f".{os.getpid()}")
    flags = ["-O2", "-g", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-std=c11", *extra]
    include = f"-I{sysconfig.get_path('include')}"
    # libfuse must be a dependency of this library even where no symbol asks for it: RTLD_NEXT looks there.
    command = ["gcc", *flags, include, *map(str, SOURCES), "-o", str(made), "-Wl,--no-as-needed"]
    subprocess.run([*command, *shlex.split(found.stdout), "-ldl"], check=True, capture_output=True, text=True)
    os.replace(made, target)
    return target
