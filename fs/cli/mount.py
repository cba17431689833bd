"""`shoal mount` and `shoal umount`."""

import difflib
import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from shoalfs.fs import mountinfo
from shoalfs.fs.cli import mountpoint, processes
from shoalfs.fs.cli.cluster import ConfigOption, StateOption, locate
from shoalfs.fs.cli.down import FLUSH_S
from shoalfs.fs.cli.output import say
from shoalfs.fs.cli.state import StateDir
from shoalfs.transport import daemon
from shoalfs.transport.config import Config, MountTable, load
from shoalfs.transport.errors import ShoalError, UserError

if TYPE_CHECKING:
    from shoalfs.fs.mount import MountOptions

_IGNORED: Final = frozenset(
    [
        "silent",
        "loud",
        "rw",
        "defaults",
        "auto",
        "noauto",
        "user",
        "users",
        "nouser",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "dev",
        "nodev",
        "suid",
        "nosuid",
        "exec",
        "async",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "strictatime",
        "diratime",
        "nodiratime",
    ]
)
"""Options that mount(8) and fstab(5) pass to every filesystem."""


def mount(
    context: typer.Context,
    places: Annotated[
        list[str],
        typer.Argument(metavar="[SOURCE] MNT", help="Where a metadata node listens; where to mount."),
    ],
    background: Annotated[bool, typer.Option("-d", "--daemon", help="Return when the mount answers.")] = False,
    wait_s: Annotated[float, typer.Option("--wait", metavar="S", help="With -d: how long to wait.")] = 30.0,
    options: Annotated[
        str,
        typer.Option(
            "-o", metavar="OPTIONS", help="Keys of [mount] as key=value,...; ro, noexec, nolock, subdir=PATH."
        ),
    ] = "",
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Mount a cluster. SOURCE is "unix:/path" or "tcp:host:port"; several are separated by commas."""
    if len(places) > 2:
        raise typer.BadParameter("expected [SOURCE] MNT", param_hint="MNT")
    point = mountpoint.absolute(places[-1])
    source = places[0].removeprefix(mountinfo.SOURCE_PREFIX) if len(places) == 2 else None
    overrides = parse_options(options)
    if source is not None:
        overrides["mount.mds"] = source.split(",")
    chosen = load(config, overrides)
    if not chosen.mount.mds:
        reach = locate(None, config, state)
        chosen = load(config, {**overrides, "mount.mds": list(reach.mds), "cluster.id": reach.cluster_id.hex() or None})
    mountpoint.make_ready(point, create=False)
    if background:
        _in_background(",".join(chosen.mount.mds), point, options, config, state, wait_s)
    else:
        _serve(chosen, point, StateDir(state), context.obj)


def umount(
    mnt: Annotated[str, typer.Argument(metavar="MNT")],
    lazy: Annotated[bool, typer.Option("-l", "--lazy", help="Now out of sight, gone when unused.")] = False,
    state: StateOption = None,
) -> None:
    """Unmount."""
    point = mountpoint.absolute(mnt)
    mounted = mountinfo.mounted_at(point, mountinfo.mounts())
    if mounted is None:
        raise UserError(f"umount: {point}: nothing is mounted there: see with `findmnt -t fuse.shoalfs` what is")
    if not mounted.is_shoal:
        raise UserError(f"umount: {point}: not a mount of shoalfs: use umount")
    found = mountpoint.condition(point)
    if found is mountpoint.Condition.SILENT and not lazy:
        raise ShoalError(f"umount: {point}: the mount does not answer: shoal umount -l {point}")
    mountpoint.unmount(point, lazy=lazy or found is mountpoint.Condition.DEAD)
    if not lazy:
        for record in StateDir(state).records():
            if record.point == point:
                processes.wait_end(record.process, FLUSH_S)


def parse_options(text: str) -> dict[str, object]:
    """The options of mount(8) as settings of [mount]; "-" and "_" are the same in a name.

    Raises UserError for an option that is unknown; values are checked with the configuration.
    """
    known = [field.encode_name for field in msgspec.structs.fields(MountTable)]
    settings: dict[str, object] = {}
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if name in _IGNORED or name.startswith(("x-", "X-", "comment")):
            continue
        if name == "remount":
            raise UserError("mount: remount: options of a mount cannot be changed: unmount it and mount it again")
        key = {"ro": "read_only", "noexec": "no_exec", "nolock": "no_lock"}.get(name, name.replace("-", "_"))
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            remedy = f"did you mean {near[0]}?" if near else f"known are ro, noexec, nolock, {', '.join(known)}"
            raise UserError(f"mount: -o {option}: unknown option: {remedy}")
        if not equals:
            settings[f"mount.{key}"] = True
        elif key.endswith("_ms") and value.isdecimal():
            settings[f"mount.{key}"] = int(value)
        else:
            settings[f"mount.{key}"] = value
    return settings


def known_options(text: str) -> str:
    """Those of ``text`` that are known."""
    kept = []
    for option in filter(None, text.split(",")):
        try:
            parse_options(option)
        except UserError:
            continue
        kept.append(option)
    return ",".join(kept)


def mount_options(config: Config, point: str, legacy_path: str = "") -> "MountOptions":
    """The mount's options as its module takes them."""
    from shoalfs.fs.mount import MountOptions

    table = config.mount
    return MountOptions(
        mountpoint=point,
        metadata=tuple(map(str, table.mds)),
        cluster_id=config.cluster.id_bytes,
        entry_timeout_ms=table.entry_timeout_ms,
        attr_timeout_ms=table.attr_timeout_ms,
        dirty_bytes=int(table.dirty_bytes),
        cache_bytes=int(table.cache_bytes),
        replication=table.replication,
        durable_close=table.close == "durable",
        allow_other=os.geteuid() == 0 if table.allow_other is None else table.allow_other,
        read_only=table.read_only,
        no_exec=table.no_exec,
        no_lock=table.no_lock,
        subdir=table.subdir,
        legacy_path=legacy_path,
    )


def _serve(config: Config, point: str, state: StateDir, readiness: daemon.Readiness) -> None:
    from shoalfs.fs import mount as mounting
    from shoalfs.transport.carrier import Carriers

    carriers = Carriers.standard(config.tls.paths, config.net.transport)
    options = mount_options(config, point, state.legacy(point))
    daemon.run(partial(mounting.run, options, carriers), readiness)


def _in_background(source: str, point: str, options: str, config: str | None, state: str | None, wait_s: float) -> None:
    """Start this command again without -d, in a session of its own, and wait until the mount answers. Its log is
    beside those of the cluster in ``state``."""
    arguments = ["mount", source, point]
    if options:
        arguments += ["-o", options]
    if config is not None:
        arguments += ["--config", os.path.abspath(config)]
    if state is not None:
        arguments += ["--state", os.path.abspath(state)]
    log_path = StateDir(state).mount_log(point)
    os.makedirs(os.path.dirname(log_path), mode=0o700, exist_ok=True)
    starting = processes.Starting("mount", arguments, log_path)
    starting.wait_ready(wait_s)
    mountpoint.wait_answers(point, wait_s)
    say(f"mounted {point}  pid {starting.process.pid}  log {log_path}")
