"""How long it takes until every chunk has all its copies again, and what of that is waiting.

    bench/redundancy [--mib 1024] [--nodes 4] [--replicas 2] [--out-ms 1000] [--rate-mib N] [--only lost|emptied|away]

Real processes on this machine: a metadata node, chunkservers, a mount, all over Unix sockets. Three losses, one after
the other, each on a cluster of its own that holds so much:

    lost      a chunkserver is killed and does not come back; others take its place
    emptied   a chunkserver is killed, all its chunks are gone, and it comes back
    away      a chunkserver is killed and comes back after some of the files were written anew

Prints for each when the leader knew, when the first copy was made, when the last one, when everything was whole,
seconds and processor seconds for each GiB copied, the rate limit that was in force, and what a reader and writer of
small and large files met meanwhile. Needs FUSE.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import trio  # noqa: E402

from harness.cluster import Cluster, wait_until  # noqa: E402
from harness.parts import configuration, running  # noqa: E402
from shoalfs.fs.cli.cluster import connect, locate  # noqa: E402
from shoalfs.fs.cli.targets import ask_status  # noqa: E402
from shoalfs.mds.messages import MdsStatus, TargetState  # noqa: E402
from shoalfs.transport.errors import ShoalError  # noqa: E402
from shoalfs.transport.limits import MIB, REPAIR_BYTES_PER_S_DEFAULT, TARGET_OUT_MS_DEFAULT  # noqa: E402

GIB = 1024 * MIB
FILE_BYTES = 16 * MIB
LOOK_S = 0.05
GIVE_UP_S = 600.0
VICTIM = "chunkserver-2"


class Watch:
    """Looks at the leader's status all the time, in a thread. ``marks``: what happened first, in seconds since then.
    ``copied``: bytes, as of the beginning and now. ``done``: whether it is over."""

    def __init__(self, cluster: Cluster) -> None:
        self.marks: dict[str, float] = {}
        self.copied = [-1, -1]
        self.done: Callable[[MdsStatus], bool] = lambda found: False
        self._reach = locate(None, None, str(cluster.state))
        self._began = 0.0
        self._stop = False
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    def __enter__(self) -> "Watch":
        self._thread.start()
        while self.copied[0] < 0:
            time.sleep(LOOK_S)
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()

    def mark(self, what: str, *, again: bool = False) -> None:
        if self._began and (again or what not in self.marks):
            self.marks[what] = time.monotonic() - self._began

    def wait_for(self, what: str) -> None:
        wait_until(lambda: what in self.marks, what, GIVE_UP_S)

    async def _run(self) -> None:
        async with connect(self._reach) as operator:
            while not self._stop:
                with suppress(ShoalError):  # it is asked again
                    self._note(await ask_status(operator))
                await trio.sleep(LOOK_S)

    def _note(self, found: MdsStatus) -> None:
        repair = found.repair
        states = {target.state for target in found.map.targets if target.node == VICTIM}
        for state in states & {TargetState.DOWN, TargetState.OUT, TargetState.SYNCING}:
            self.mark(state.name.lower())
        if repair.groups_moving:
            self.mark("groups move")
        if repair.missing_chunks:
            self.mark("first chunk known to be missing")
        if self.copied[0] < 0:
            self.copied = [repair.copied_bytes, repair.copied_bytes]
        if repair.copied_bytes > self.copied[1]:
            self.copied[1] = repair.copied_bytes
            self.mark("first copy reported")
            self.mark("last copy reported", again=True)
        if repair.checked_percent == 100 and "first chunk known to be missing" in self.marks:
            self.mark("all inventories compared")
        if self.done(found):
            self.mark("whole")


def is_whole(found: MdsStatus) -> bool:
    """Every target that is not out is up, everything was compared, nothing is missing or moving."""
    repair = found.repair
    return (
        all(target.state in (TargetState.UP, TargetState.OUT) for target in found.map.targets)
        and not repair.missing_chunks
        and not repair.groups_moving
        and repair.checked_percent == 100
    )


class Client:
    """Reads and writes small and large files in a thread, and notes how long each call took."""

    def __init__(self, tree: Path, files: list[Path], large: bytes) -> None:
        self.tree, self.files, self.large = tree, files, large
        self.took: dict[str, list[float]] = {}
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        chance = Random(1)
        number = 0
        while not self._stop.wait(0.05):
            number += 1
            self._timed("create 4 KiB", partial((self.tree / f"s{number}").write_bytes, b"x" * 4096))
            self._timed("write and fsync 1 MiB", self._write)
            self._timed("read 1 MiB", lambda: self._read(chance))

    def _write(self) -> None:
        with open(self.tree / "large", "wb", buffering=0) as file:
            file.write(self.large[:MIB])
            os.fsync(file.fileno())

    def _read(self, chance: Random) -> None:
        path = chance.choice(self.files)
        at = chance.randrange(FILE_BYTES // MIB) * MIB
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if os.pread(fd, MIB, at) != self.large[at : at + MIB]:
                self.errors.append(f"{path} has other bytes at {at}")
        finally:
            os.close(fd)

    def _timed(self, what: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            work()
        except OSError as error:
            self.errors.append(f"{what}: {error}")
        self.took.setdefault(what, []).append(time.monotonic() - began)

    def report(self) -> None:
        for what, took in self.took.items():
            took.sort()
            print(
                f"    client: {what}: {len(took)} times, half in {took[len(took) // 2] * 1000:.0f} ms, "
                f"99 of 100 in {took[len(took) * 99 // 100] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms"
            )
        print(f"    client: {len(self.errors)} errors {self.errors[:3] or ''}")


def cpu_s(cluster: Cluster) -> dict[str, float]:
    """Processor seconds of each process of the cluster so far, by its name and number."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for record in cluster.records():
        try:
            fields = Path(f"/proc/{record.process.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        found[f"{record.name} {record.process.pid}"] = (int(fields[11]) + int(fields[12])) / tick
    return found


@contextmanager
def filled(arguments: argparse.Namespace, out_ms: int) -> Iterator[tuple[Cluster, list[Path], bytes]]:
    """A cluster with so much in it, all of it in as many copies as it should have."""
    large = b"".join(Random(number).randbytes(MIB) for number in range(FILE_BYTES // MIB))
    with Cluster("--nodes", str(arguments.nodes), "--replicas", str(arguments.replicas)) as cluster:
        cluster.up()
        cluster.kill("mds")
        tables = configuration(cluster, "mds-1")
        tables["mds"] |= {"target_out_ms": out_ms, "repair_bytes_per_s": arguments.rate_mib * MIB}
        with running(cluster, "mds-1", tables):
            tree = cluster.point / "tree"
            tree.mkdir()
            files = [tree / f"f{number}" for number in range(arguments.mib * MIB // FILE_BYTES)]
            for path in files:
                path.write_bytes(large)
            with Watch(cluster) as watch:
                watch.done = is_whole
                watch.wait_for("whole")
            yield cluster, files, large


Stage = Callable[[Cluster, Watch, ExitStack], Callable[[MdsStatus], bool]]


def lost(cluster: Cluster, watch: Watch, stack: ExitStack) -> Callable[[MdsStatus], bool]:
    cluster.kill(VICTIM)

    def done(found: MdsStatus) -> bool:
        victims = {target.id for target in found.map.targets if target.node == VICTIM}
        return is_whole(found) and not any(victims & set(group.holders) for group in found.map.groups)

    return done


def emptied(cluster: Cluster, watch: Watch, stack: ExitStack) -> Callable[[MdsStatus], bool]:
    cluster.kill(VICTIM)
    for part in ("segments", "index"):
        shutil.rmtree(cluster.state / "data" / VICTIM / part)
    back(cluster, watch, stack)
    return lambda found: is_whole(found) and found.repair.copied_bytes > watch.copied[0]


def away(cluster: Cluster, watch: Watch, stack: ExitStack) -> Callable[[MdsStatus], bool]:
    large = (cluster.point / "tree" / "f0").read_bytes()
    cluster.kill(VICTIM)
    watch.wait_for("down")
    for number in range(8):
        (cluster.point / "tree" / f"new{number}").write_bytes(large)
    watch.mark("written meanwhile")
    back(cluster, watch, stack)
    return is_whole  # what was written has its copies elsewhere, if nobody tried it before the target was down


def back(cluster: Cluster, watch: Watch, stack: ExitStack) -> None:
    stack.enter_context(running(cluster, VICTIM, configuration(cluster, VICTIM)))
    watch.mark("started again")


def measure(kind: Stage, arguments: argparse.Namespace) -> None:
    with filled(arguments, arguments.out_ms if kind is lost else TARGET_OUT_MS_DEFAULT) as (cluster, files, large):
        watch = Watch(cluster)
        with ExitStack() as stack, Client(cluster.point / "tree", files, large) as client:
            time.sleep(1.0)
            before = cpu_s(cluster)
            with watch:
                watch.done = kind(cluster, watch, stack)
                watch.wait_for("whole")
            after = cpu_s(cluster)
        report(kind.__name__, watch, before, after, arguments)
        client.report()


def report(
    name: str, watch: Watch, before: dict[str, float], after: dict[str, float], arguments: argparse.Namespace
) -> None:
    copied = watch.copied[1] - watch.copied[0]
    print(f"{name}: {copied / MIB:.0f} MiB copied, at most {arguments.rate_mib} MiB/s to or from each target")
    for what, at_s in sorted(watch.marks.items(), key=lambda item: item[1]):
        print(f"    {at_s:7.2f} s  {what}")
    if not copied:
        return
    gib = copied / GIB
    copying_s = watch.marks["last copy reported"] - watch.marks["first copy reported"]
    print(f"    {watch.marks['whole'] / gib:.1f} s for each GiB in all, {copying_s / gib:.1f} s of it copying")
    spent = {process: seconds - before.get(process, 0.0) for process, seconds in after.items()}
    print("    processor seconds for each GiB, the client's own work included:")
    for process, seconds in sorted(spent.items()):
        print(f"      {process.rpartition(' ')[0]}: {seconds / gib:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="of files, before they are copied")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--out-ms", type=int, default=1000, help="how long a target is down before it is replaced")
    parser.add_argument("--rate-mib", type=int, default=REPAIR_BYTES_PER_S_DEFAULT // MIB)
    parser.add_argument("--only", choices=("lost", "emptied", "away"))
    arguments = parser.parse_args()
    for kind in (lost, emptied, away):
        if arguments.only in (None, kind.__name__):
            measure(kind, arguments)


if __name__ == "__main__":
    main()
