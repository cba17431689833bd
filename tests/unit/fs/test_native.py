"""The compiled part, alone: driven through a socket, plainly and under AddressSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import shim_driver
from shoalfs.fs import native
from shoalfs.fs.native.compile import compile_shim


def build(directory: Path, *extra: str) -> Path:
    return compile_shim(directory, ("-Werror", *extra))


def drive(path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", shim_driver.__name__, str(path)],
        env=os.environ | environment | {"PYTHONPATH": str(Path(shim_driver.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_built_here():
    assert native.shim is not None, "gcc, pkg-config, libfuse3-dev: then install the package again"


def test_requests_and_replies(tmp_path: Path):
    assert drive(build(tmp_path)) == "passed\n"


def test_requests_and_replies_under_address_sanitizer(tmp_path: Path):
    library = build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    preload = runtime.stdout.strip()
    if not os.path.isabs(preload):
        pytest.fail("NOT TESTED: no libasan.so beside this gcc")
    # Leaks are not looked for: the interpreter does not free everything at its end. Its own allocator would hide reads
    # beyond the end of a small request.
    options = {"PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    assert drive(library, LD_PRELOAD=preload, **options) == "passed\n"


def test_without_it_nothing_is_loaded():
    text = "from shoalfs.fs.fuse_binding import native; print(native.shim)"
    done = subprocess.run(
        [sys.executable, "-c", text], env=os.environ | {native.WITHOUT: "1"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"
