"""`shoal up`: a whole cluster on this machine, mounted.

Every start goes the same way: the run record is written, then the process is waited for. Repeating the
command finds the records, leaves alone what runs and starts what does not, also after a crash in the middle.
"""

import os
import secrets
import signal
import time
from functools import partial
from typing import Annotated, Final

import typer

from shoalfs.fs.cli import embedded, mountpoint, processes
from shoalfs.fs.cli.cluster import Operator, StateOption, call, locate
from shoalfs.fs.cli.down import FLUSH_S, STOP_S, stop_all
from shoalfs.fs.cli.output import print_table, say
from shoalfs.fs.cli.state import ClusterRecord, RunRecord, StateDir
from shoalfs.transport.config import render
from shoalfs.transport.errors import UserError
from shoalfs.transport.limits import MIB

READY_S: Final = 60.0  # a metadata node that replays a long journal is the slowest to start
TARGETS_S: Final = 15.0  # a target is known to the metadata service a second after its server has started
_WATCH_S: Final = 1.0


def up(
    mnt: Annotated[str, typer.Argument(metavar="MNT", help="Empty directory to mount at.")],
    nodes: Annotated[int | None, typer.Option(help="Chunkservers; 2 if not given.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Copies of every chunk; 2 if there are nodes for it.")] = None,
    mds: Annotated[int | None, typer.Option(help="Metadata nodes, 1 or 3; 1 if not given.")] = None,
    state: StateOption = None,
    mkdir: Annotated[bool, typer.Option("--mkdir", help="Create MNT if it is missing.")] = False,
    background: Annotated[bool, typer.Option("-d", "--daemon", help="Return when the mount answers.")] = False,
) -> None:
    """Start a cluster on this machine and mount it; or start what is missing of it."""
    directory = StateDir(state)
    cluster = settle(directory.cluster, mds, nodes, replicas, directory.path)
    daemons = embedded.servers(directory, cluster)  # before anything is made: paths may be too long
    point = mountpoint.absolute(mnt)
    directory.create()
    with directory.locked():
        if not _mounts_of(directory):
            # Before any server is started: a mistake here should leave nothing running. A mount that runs is asked
            # only afterwards: without servers it does not answer.
            mountpoint.make_ready(point, create=mkdir)
        directory.write_cluster(cluster)
        _start_servers(directory, daemons)
        _wait_targets(directory, cluster.nodes)
        if not _is_mounted(directory, point):
            mountpoint.make_ready(point, create=mkdir)
            _start_mount(directory, cluster, point)
    _report(directory, point)
    if not background:
        _stay(directory, point)


def _share(where: str, nodes: int) -> int:
    """Each target's share of what the disk that ``where`` is on (or will be) has free, in whole MiB."""
    while not os.path.exists(where):
        where = os.path.dirname(where)
    space = os.statvfs(where)
    return max(1, space.f_bavail * space.f_frsize // nodes // MIB) * MIB


def settle(
    made: ClusterRecord | None, mds: int | None, nodes: int | None, replicas: int | None, where: str
) -> ClusterRecord:
    """How the cluster is, or is to be made. Raises UserError if it was made otherwise than now asked for."""
    if made is None:
        nodes = 2 if nodes is None else nodes
        wanted = ClusterRecord(
            cluster_id=secrets.token_hex(16),
            mds=1 if mds is None else mds,
            nodes=nodes,
            replicas=min(2, nodes) if replicas is None else replicas,
            target_bytes=_share(where, max(1, nodes)),
        )
        embedded.check(wanted)
        return wanted
    for option, asked, has in (
        ("--mds", mds, made.mds),
        ("--nodes", nodes, made.nodes),
        ("--replicas", replicas, made.replicas),
    ):
        if asked is not None and asked != has:
            raise UserError(
                f"{option} {asked}: {where}: this cluster was made with {has}: leave the option out, "
                "or make another cluster with --state DIR"
            )
    return made


def _start_servers(directory: StateDir, daemons: list[embedded.Daemon]) -> None:
    """Start those that do not run: first all metadata nodes, which need each other, then all chunkservers."""
    running = {record.name for record in directory.records() if processes.is_running(record.process)}
    for kind in ("mds", "chunkserver"):
        missing = [daemon for daemon in daemons if daemon.kind == kind and daemon.name not in running]
        starting = [_start(directory, daemon) for daemon in missing]
        for daemon, process in zip(missing, starting, strict=True):
            process.wait_ready(READY_S)
            say(f"started {daemon.name}  pid {process.process.pid}")


def _wait_targets(directory: StateDir, nodes: int) -> None:
    """Return when the metadata service counts every target as up: a file could not be stored before. One that does
    not come is reported and left to `shoal status`; the others may be enough."""
    up = call(locate(None, None, directory.path), partial(_count_up, nodes))
    if up < nodes:
        say(f"only {up} of {nodes} targets are up after {TARGETS_S:g} s: see with `shoal status` which are not")


async def _count_up(nodes: int, operator: Operator) -> int:
    import trio

    from shoalfs.mds.messages import GET_MAP, GetMap, TargetState

    give_up = trio.current_time() + TARGETS_S
    while True:
        targets = (await operator.leader.call(GET_MAP, GetMap())).body.targets
        # One that an operator drains or took out is not waited for: it does not become up by itself.
        up = sum(target.state is not TargetState.DOWN for target in targets)
        if up >= nodes or trio.current_time() >= give_up:
            return up
        await trio.sleep(0.05)


def _start(directory: StateDir, daemon: embedded.Daemon) -> processes.Starting:
    config_path = directory.at("conf", f"{daemon.name}.toml")
    with open(config_path, "w", encoding="utf-8") as file:
        file.write(render(daemon.tables))
    log = directory.log(daemon.name)
    starting = processes.Starting(daemon.name, daemon.arguments(config_path), log)
    directory.write_record(RunRecord(daemon.name, daemon.kind, starting.identity, daemon.address, log))
    return starting


def _start_mount(directory: StateDir, cluster: ClusterRecord, point: str) -> None:
    config_path = directory.at("conf", "mount.toml")
    with open(config_path, "w", encoding="utf-8") as file:
        file.write(render(embedded.mount_tables(directory, cluster)))
    log = directory.log(embedded.MOUNT)
    starting = processes.Starting(
        embedded.MOUNT, ["mount", "--config", config_path, "--state", directory.path, point], log
    )
    directory.write_record(RunRecord(embedded.MOUNT, embedded.MOUNT, starting.identity, "", log, point))
    starting.wait_ready(READY_S)
    mountpoint.wait_answers(point, READY_S)
    say(f"mounted {point}  pid {starting.process.pid}")


def _mounts_of(directory: StateDir) -> list[RunRecord]:
    """The mount's record, if its process runs."""
    return [
        record
        for record in directory.records()
        if record.kind == embedded.MOUNT and processes.is_running(record.process)
    ]


def _is_mounted(directory: StateDir, point: str) -> bool:
    """Whether the cluster's mount answers at ``point``; one that is just ending is waited for.

    Raises UserError if it is mounted elsewhere.
    """
    for record in _mounts_of(directory):
        if mountpoint.condition(record.point) is not mountpoint.Condition.SHOAL:
            processes.wait_end(record.process, FLUSH_S)
            processes.stop(record.process, STOP_S)
        elif record.point == point:
            return True
        else:
            raise UserError(
                f"mount point: {point}: this cluster is mounted at {record.point}: "
                f"shoal umount {record.point} first, or add a mount with `shoal mount`"
            )
    return False


def _report(directory: StateDir, point: str) -> None:
    rows = [
        (record.name, record.process.pid, record.point or record.address, record.log) for record in directory.records()
    ]
    print_table(("process", "pid", "serves", "log"), rows)
    option = "" if directory.path == StateDir().path else f" --state {directory.path}"
    typer.echo(f"\nnext: df -h {point} | shoal status{option} | shoal fsck{option} | shoal down{option}")


def _stay(directory: StateDir, point: str) -> None:
    """Watch over the processes until Ctrl-C or SIGTERM, then take everything down; or until somebody else
    did."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say(f"shoalfs serves {point}; Ctrl-C unmounts it and stops the cluster")
    told: set[str] = set()
    try:
        while records := directory.records():
            ended = {record.name: record.log for record in records if not processes.is_running(record.process)}
            for name in sorted(ended.keys() - told):
                say(f"{name} has ended: read {ended[name]}; `shoal up` in another terminal restarts it")
            told = set(ended)
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        say("stopping")
        with directory.locked():
            stop_all(directory)
