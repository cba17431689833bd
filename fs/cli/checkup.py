"""What `shoal doctor` looks at, and what it says of what it finds. Knows no machine: :class:`Machine` is the port,
`fs/cli/machine.py` the real one.

The one rule: a line that is wrong names the next command to run, or the one thing to change.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from shoalfs.transport.config import Config
from shoalfs.transport.errors import ShoalError, UserError
from shoalfs.transport.limits import CONNECTIONS_MAX, MIB, RDMA_CONNECTIONS_MAX
from shoalfs.transport.link import LinkInfo
from shoalfs.transport.rdma_memory import BLOCK_BYTES
from shoalfs.transport.rdma_table import DevicePort, NoVerbs, choose_port

_MEMLOCK_BYTES: Final = RDMA_CONNECTIONS_MAX * BLOCK_BYTES
_MTU_WANTED_BYTES: Final = 4096
_HUGE_PAGES: Final = -(-_MEMLOCK_BYTES // (2 * MIB))


class Mark(enum.Enum):
    OK = "ok"
    NOTE = "note"  # works, but could be better; or is not in use
    WRONG = "WRONG"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. ``next``: a command, or what to change."""

    mark: Mark
    topic: str
    text: str
    next: str = ""


class Machine(Protocol):
    """What can be asked of a machine. Methods that return text return "" if all is well, else what is not."""

    def fuse_device(self) -> str:
        """Whether /dev/fuse can be opened."""
        ...

    def program(self, name: str) -> bool:
        """It is on PATH."""
        ...

    def compiled_part(self) -> bool: ...

    def erasure_library(self) -> bool: ...

    def users_may_allow_other(self) -> bool:
        """This user may let others use the mount: root, or fuse.conf says so."""
        ...

    def open_files_max(self) -> int: ...

    def memlock_bytes(self) -> int | None:
        """How much this process may lock; None: as much as there is."""
        ...

    def huge_pages_free(self) -> int:
        """Of 2 MiB."""
        ...

    def rdma_hardware(self) -> bool:
        """The kernel has an RDMA device."""
        ...

    def module(self, name: str) -> bool:
        """The kernel has it, loaded or built in."""
        ...

    def verbs_device(self) -> str:
        """Whether a /dev/infiniband/uverbs* can be opened."""
        ...

    def binding(self) -> str:
        """Whether pyverbs can be loaded."""
        ...

    def device_table(self) -> Sequence[DevicePort]:
        """Raises NoVerbs."""
        ...

    def local_ips(self, address: str) -> list[str]:
        """The addresses of this machine from which it would reach, or at which it would serve, this tcp: address; none
        if the name is not known or there is no way."""
        ...

    def queue_pair(self, local_ip: str) -> None:
        """Make one and let it go, with all the memory that it needs. Raises NoVerbs."""
        ...

    def tls(self, config: Config) -> None:
        """Raises UserError if a file of [tls] is missing or wrong."""
        ...

    def dial(self, address: str, config: Config) -> LinkInfo:
        """How a connection to this address moves bytes. Raises ShoalError, UserError."""
        ...


def examine(machine: Machine, config: Config) -> Iterator[Line]:
    """Everything, in the order in which it is to be repaired."""
    yield from _mounting(machine)
    yield from _network(machine, config)
    if config.net.transport == "tcp":
        yield Line(
            Mark.NOTE,
            "rdma",
            '[net] transport is "tcp": not used',
            "shoal doctor --transport auto: whether it could be",
        )
    else:
        yield from _rdma(machine, config)
    yield from _peers(machine, config)


def _mounting(machine: Machine) -> Iterator[Line]:
    trouble = machine.fuse_device()
    if not trouble:
        yield Line(Mark.OK, "fuse", "/dev/fuse can be opened")
    elif machine.module("fuse"):
        yield Line(Mark.WRONG, "fuse", trouble, "chmod 666 /dev/fuse; in a container, start it with --device /dev/fuse")
    else:
        yield Line(Mark.WRONG, "fuse", trouble, "modprobe fuse")
    if machine.program("fusermount3"):
        yield Line(Mark.OK, "fusermount3", "installed")
    else:
        yield Line(Mark.WRONG, "fusermount3", "not on PATH", "apt install fuse3")
    if machine.compiled_part():
        yield Line(Mark.OK, "compiled part", "loaded")
    else:
        yield Line(
            Mark.NOTE,
            "compiled part",
            "missing: locks hold on this machine only; no fallocate, holes, clones, O_TMPFILE",
            "apt install gcc pkg-config libfuse3-dev, then install shoalfs again",
        )
    if not machine.users_may_allow_other():
        yield Line(
            Mark.NOTE, "allow_other", "only this user will see its mounts", "echo user_allow_other >> /etc/fuse.conf"
        )
    if machine.erasure_library():
        yield Line(Mark.OK, "libisal", "installed")
    else:
        yield Line(Mark.NOTE, "libisal", "missing: no pools of fragments", "apt install libisal2")
    limit = machine.open_files_max()
    if limit < CONNECTIONS_MAX:
        yield Line(
            Mark.NOTE, "open files", f"{limit} at most, a busy server wants {CONNECTIONS_MAX}", "ulimit -n 65536"
        )
    else:
        yield Line(Mark.OK, "open files", f"{limit} at most")


def _network(machine: Machine, config: Config) -> Iterator[Line]:
    if not config.tls.ca:
        yield Line(Mark.NOTE, "tls", "none: only loopback and unix: addresses are served", "set [tls] ca, cert and key")
        return
    try:
        machine.tls(config)
    except UserError as error:
        yield Line(Mark.WRONG, "tls", str(error), "correct [tls] ca, cert and key")
    else:
        yield Line(Mark.OK, "tls", f"certificate {config.tls.cert} of {config.tls.ca}")


def _rdma(machine: Machine, config: Config) -> Iterator[Line]:
    # Whoever says "auto" everywhere has machines without a device, too.
    absent = Mark.NOTE if config.net.transport == "auto" and not machine.rdma_hardware() else Mark.WRONG
    trouble = machine.binding()
    if trouble:
        yield Line(
            absent,
            "pyverbs",
            trouble,
            "apt install rdma-core ibverbs-providers python3-pyverbs; in a virtual environment, link "
            "/usr/lib/python3/dist-packages/pyverbs into its site-packages",
        )
        return
    yield Line(Mark.OK, "pyverbs", "loaded")
    if not machine.module("ib_uverbs"):
        yield Line(absent, "kernel", "ib_uverbs is not loaded", "modprobe -a ib_uverbs rdma_ucm")
        return
    trouble = machine.verbs_device()
    if trouble:
        yield Line(absent, "kernel", trouble, "lspci | grep -i -e mellanox -e infiniband; rdma link show")
        return
    yield Line(Mark.OK, "kernel", "ib_uverbs is loaded, and its device can be opened")
    try:
        table = machine.device_table()
    except NoVerbs as error:
        yield Line(Mark.WRONG, "device", str(error), "ibv_devinfo")
        return
    if not table:
        yield Line(absent, "device", "none", "rdma link show")
        return
    yield from _devices(table)
    yield from _memory(machine)
    yield from _addresses(machine, config, table)


def _devices(table: Sequence[DevicePort]) -> Iterator[Line]:
    useful = any(port.active for port in table)
    for port in table:
        kind = "InfiniBand" if port.infiniband else "RoCE"
        if not port.active:
            mark = Mark.NOTE if useful else Mark.WRONG
            yield Line(mark, "device", f"{port.name}: {kind}, {port.state}", f"rdma link show {port.name}")
            continue
        yield Line(Mark.OK, "device", f"{port.name}: {kind}, active, packets of {port.mtu_bytes} bytes")
        usable = [gid for gid in port.gids if port.infiniband or gid.roce_v2]
        if usable:
            yield Line(Mark.OK, "GID", f"{port.name}: {', '.join(f'{gid.index} {gid.ip}' for gid in usable)}")
        else:
            yield Line(
                Mark.WRONG,
                "GID",
                f"{port.name}: none of kind RoCE v2: its network device has no address, or is down",
                "ip address show; rdma link show",
            )
        if not port.infiniband and port.mtu_bytes < _MTU_WANTED_BYTES:
            yield Line(
                Mark.NOTE,
                "MTU",
                f"{port.name}: packets of {port.mtu_bytes} bytes, {_MTU_WANTED_BYTES} cost less",
                "ip link set DEVICE mtu 4200, on all machines and switches",
            )


def _memory(machine: Machine) -> Iterator[Line]:
    limit = machine.memlock_bytes()
    if limit is None or limit >= _MEMLOCK_BYTES:
        yield Line(Mark.OK, "memlock", "unlimited" if limit is None else f"{limit // MIB} MiB")
    else:
        mark = Mark.WRONG if limit < 2 * BLOCK_BYTES else Mark.NOTE
        connections = limit // BLOCK_BYTES
        yield Line(
            mark,
            "memlock",
            f"{limit // 1024} KiB: enough for {connections} of {RDMA_CONNECTIONS_MAX} connections",
            "ulimit -l unlimited; LimitMEMLOCK=infinity in the systemd unit",
        )
    free = machine.huge_pages_free()
    if free < _HUGE_PAGES:
        yield Line(
            Mark.NOTE,
            "huge pages",
            f"{free} free, {_HUGE_PAGES} of 2 MiB for each process would be used",
            f"sysctl vm.nr_hugepages={_HUGE_PAGES}",
        )
    else:
        yield Line(Mark.OK, "huge pages", f"{free} free")


def _addresses(machine: Machine, config: Config, table: Sequence[DevicePort]) -> Iterator[Line]:
    """Every address from which this machine would talk: a port has to carry it, and has to give a queue pair."""
    ips = dict.fromkeys(ip for address in _remote(config) for ip in machine.local_ips(address))
    if not ips:
        yield Line(
            Mark.NOTE, "addresses", "none of the configuration's crosses machines", "name them with --config FILE"
        )
    for ip in ips:
        try:
            port = choose_port(table, ip)
        except NoVerbs as error:
            yield Line(Mark.WRONG, "address", f"{ip}: {error}", "ip address show; rdma link show")
            continue
        try:
            machine.queue_pair(ip)
        except NoVerbs as error:
            yield Line(Mark.WRONG, "address", f"{ip}: {port.device}/{port.number}: {error}", "ulimit -l; dmesg | tail")
        else:
            yield Line(
                Mark.OK, "address", f"{ip}: {port.device}/{port.number}, GID {port.gid_index}; a queue pair can be made"
            )


def _remote(config: Config) -> list[str]:
    """Addresses of the configuration that are TCP: what this machine serves, and whom it dials."""
    served = [config.mds.listen, config.chunkserver.listen, config.chunkserver.advertise]
    named = [str(address) for address in (*_metadata(config), *served) if address is not None]
    return [address for address in named if address.startswith("tcp:")]


def _metadata(config: Config) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, (*config.mount.mds, *config.chunkserver.mds, *config.mds.peers.values()))))


def _peers(machine: Machine, config: Config) -> Iterator[Line]:
    for address in _metadata(config):
        try:
            info = machine.dial(address, config)
        except (ShoalError, UserError) as error:
            yield Line(Mark.WRONG, "metadata", str(error), "see on that machine that `shoal mds run` runs")
            continue
        over = f"over {info.carrier} {info.device}".rstrip()
        reason = f": {info.reason}" if info.reason else ""
        yield Line(Mark.NOTE if reason else Mark.OK, "metadata", f"{address}: {over}{reason}")
