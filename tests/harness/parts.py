"""Single parts of a test's cluster: with a configuration of their own, on disks of their own, or refusing to start."""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from harness import short_grace_mds
from harness.cluster import COMMAND_S, Cluster, shoal, wait_until
from shoalfs.fs.cli.processes import Starting, identity
from shoalfs.fs.cli.state import RunRecord, StateDir
from shoalfs.transport.config import render

SERVER_READY_S = 30.0


def configuration(cluster: Cluster, name: str) -> dict[str, dict[str, Any]]:
    """What `shoal up` configured this part with."""
    return tomllib.loads((cluster.state / "conf" / f"{name}.toml").read_text())


def write_configuration(cluster: Cluster, name: str, tables: Mapping[str, Mapping[str, object]]) -> Path:
    """Beside the others', under this name."""
    path = cluster.state / "conf" / f"{name}.toml"
    path.write_text(render(tables))
    return path


@contextmanager
def running(
    cluster: Cluster, name: str, tables: Mapping[str, Mapping[str, object]], *arguments: object
) -> Iterator[None]:
    """A server of the cluster in the place of the one `shoal up` would start, or one more mount, configured with
    ``tables``. It is ended with the block. ``arguments`` begin its command line; without them it is that of a server.
    """
    kind = name.partition("-")[0]
    log = str(cluster.state / "log" / f"{name}.log")
    path = write_configuration(cluster, name, tables)
    starting = Starting(name, [*map(str, arguments or (kind, "run")), "--config", str(path)], log)
    try:
        if "listen" in tables[kind]:
            record = RunRecord(name, kind, starting.identity, str(tables[kind]["listen"]), log)
            StateDir(str(cluster.state)).write_record(record)
        starting.wait_ready(SERVER_READY_S)
        yield
    finally:
        starting.process.kill()
        starting.process.wait()


@contextmanager
def collecting_soon(cluster: Cluster, grace_ms: int) -> Iterator[None]:
    """The metadata service of the cluster, started anew with a grace for garbage that no configuration may have: so
    short that a test can wait for it."""
    path = cluster.state / "conf" / "mds-1.toml"
    (record,) = [record for record in cluster.records() if record.name == "mds-1"]
    command = [sys.executable, short_grace_mds.__file__, str(path), str(grace_ms)]
    with open(record.log, "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
    try:
        itself = identity(process.pid)
        assert itself is not None
        StateDir(str(cluster.state)).write_record(msgspec.structs.replace(record, process=itself))
        wait_until(lambda: shoal("status", "--state", cluster.state).returncode == 0, "the service answers")
        yield
    finally:
        process.kill()
        process.wait()


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The line that a failed command said, besides its progress or log."""
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("shoal: ")]
    assert len(said) == 1, done.stderr
    return said[0]


def refusal_of_up(cluster: Cluster) -> str:
    """Why `shoal up` does not succeed, which it must not; no process may have ended in a traceback."""
    line = one_line(shoal("up", cluster.point, "--state", cluster.state, "-d"), 1)
    assert_no_traceback(cluster)
    return line


def assert_no_traceback(cluster: Cluster) -> None:
    """Whatever the daemons met, they said it in lines."""
    for log in (cluster.state / "log").glob("*.log"):
        assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-4000:]


def fsck_findings(cluster: Cluster, *options: str) -> list[dict[str, Any]]:
    """What fsck finds, as its JSON has it; it has to find something."""
    done = shoal("fsck", "--json", *options, "--state", cluster.state)
    assert done.returncode == 1, f"fsck: exit {done.returncode}\n{done.stdout}{done.stderr}"
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return found


def remount(cluster: Cluster) -> None:
    """Take the mount off and have it again: nothing comes from a cache afterwards. Starts what does not run."""
    cluster.run("umount", cluster.point, "--state", cluster.state)
    cluster.up()


@contextmanager
def small_disk(size_mib: int) -> Iterator[Path]:
    """A filesystem of this size, mounted. Nothing may use it any more when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-disk-"))
    image, point = directory / "image", directory / "disk"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    try:
        _command("mkfs.ext4", "-q", "-m", "0", str(image))
        _command("mount", "-o", "loop", str(image), str(point))
        try:
            yield point
        finally:
            _command("umount", str(point))  # detaches the loop device, too
    finally:
        image.unlink()
        point.rmdir()
        directory.rmdir()


def _command(*arguments: str) -> None:
    done = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
