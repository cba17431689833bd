"""Builds the one compiled part, fs/native/*.c, when the package is installed (editable too).

Without gcc, pkg-config and libfuse3-dev the installation succeeds all the same, and a mount says in its log what is
missing then.
"""

import runpy
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShimHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        directory = Path(self.root, "fs", "native")
        try:
            made = runpy.run_path(str(directory / "compile.py"))["compile_shim"](directory)
        except (OSError, subprocess.CalledProcessError) as error:
            text = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"fs/native: not built, locks and fallocate will be missing: {text}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version == "standard":
            build_data["force_include"][str(made)] = f"shoalfs/fs/native/{made.name}"
