"""`shoal down`: unmount, then stop the chunkservers, then the metadata service; with --purge, remove
everything.

The mount goes first, because what is dirty in it needs the servers to land. A mount that is in use stops the
whole command, and nothing has been stopped then.
"""

import sys
from typing import Annotated, Final

import typer

from shoalfs.fs import mountinfo
from shoalfs.fs.cli import mountpoint, processes
from shoalfs.fs.cli.cluster import StateOption
from shoalfs.fs.cli.output import say
from shoalfs.fs.cli.state import KINDS, StateDir
from shoalfs.transport.errors import UserError

FLUSH_S: Final = 90.0  # an unmounted process writes back its dirty bytes before it ends
STOP_S: Final = 10.0


def down(
    state: StateOption = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the cluster's data too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --purge: do not ask.")] = False,
) -> None:
    """Unmount and stop the cluster of this machine."""
    directory = StateDir(state)
    if directory.cluster is None:
        raise UserError(f"state: {directory.path}: no cluster was made here: name its directory with --state")
    with directory.locked():
        stop_all(directory)
        if purge:
            _purge(directory, yes=yes)


def stop_all(directory: StateDir) -> None:
    """Stop every process of the cluster, in order. Raises ShoalError if a mount of it is in use."""
    _unmount_all(directory)
    for kind in reversed(KINDS):
        for record in [record for record in directory.records() if record.kind == kind]:
            # The mount's process has been waited for already and is only stopped if it hangs.
            ended = processes.stop(record.process, STOP_S)
            directory.remove_record(record.name)
            if ended:
                say(f"stopped {record.name}")
            elif kind != "mount":  # that one has ended because it was unmounted
                say(f"{record.name} did not run")


def _unmount_all(directory: StateDir) -> None:
    """Take off every mount of this cluster, also those made by `shoal mount`. One that is dead or does not
    answer is taken out of sight: nothing can be saved there any more."""
    sockets = f"unix:{directory.at('sock')}/"
    for mount in reversed(mountinfo.mounts()):
        if mount.is_shoal and any(address.startswith(sockets) for address in mount.mds):
            answers = mountpoint.condition(mount.point) is mountpoint.Condition.SHOAL
            mountpoint.unmount(mount.point, lazy=not answers)
            say(f"unmounted {mount.point}")
            if answers:
                _wait_flushed(directory, mount.point)


def _wait_flushed(directory: StateDir, point: str) -> None:
    """Wait for the process of a mount that was taken off: it still commits what is dirty."""
    for record in directory.records():
        if record.point == point:
            processes.wait_end(record.process, FLUSH_S)


def _purge(directory: StateDir, *, yes: bool) -> None:
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"--purge: {directory.path}: removes all files of the cluster: add --yes to confirm")
        typer.confirm(f"Remove all files of the cluster in {directory.path}?", abort=True, err=True)
    directory.purge()
    say(f"removed {directory.path}")
