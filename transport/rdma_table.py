"""The RDMA ports of a machine as values, and which of them serves an address. Pure.

`rdma_ports` reads the real table; tests and `shoal doctor` also work on others.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_MAPPED: Final = bytes(10) + b"\xff\xff"  # an IPv4 address as IPv6 begins so


class NoVerbs(Exception):
    """Verbs cannot be used, in one line that says why."""


@dataclass(frozen=True, slots=True)
class Gid:
    """An address of a port. ``gid`` is 16 bytes; ``roce_v2``: packets go over UDP, the one kind of RoCE used here."""

    index: int
    gid: bytes
    roce_v2: bool

    @property
    def ip(self) -> str:
        """As people know it: "10.1.2.3", "fe80::1"."""
        address = ipaddress.IPv6Address(self.gid)
        return str(address.ipv4_mapped or address)


@dataclass(frozen=True, slots=True)
class DevicePort:
    """One port of one device. ``mtu`` is the verbs' code 1..5 for 256..4096 bytes; ``state`` as the library names it
    ("active", "down")."""

    device: str
    number: int
    state: str
    infiniband: bool
    mtu: int
    lid: int
    gids: tuple[Gid, ...]

    @property
    def active(self) -> bool:
        return self.state == "active"

    @property
    def name(self) -> str:
        return f"{self.device}/{self.number}"

    @property
    def mtu_bytes(self) -> int:
        return 128 << self.mtu


@dataclass(frozen=True, slots=True)
class Port:
    """Where a device meets the network, with one of its addresses. ``gid`` is 16 bytes."""

    device: str
    number: int
    gid: bytes
    gid_index: int
    mtu: int
    lid: int
    infiniband: bool


def ports(table: Sequence[DevicePort]) -> Iterator[Port]:
    """The ports that are up, one entry for each address that can be used."""
    for port in table:
        if port.active:
            for gid in port.gids:
                if port.infiniband or gid.roce_v2:
                    yield Port(port.device, port.number, gid.gid, gid.index, port.mtu, port.lid, port.infiniband)


def choose_port(table: Sequence[DevicePort], local_ip: str) -> Port:
    """The port that carries ``local_ip``; InfiniBand, whose addresses are not derived from it, if there is one; for an
    address of the loopback any that carries an IPv4 address. Raises NoVerbs."""
    if not table:
        raise NoVerbs("no RDMA device here")
    if not any(port.active for port in table):
        raise NoVerbs(f"no port of an RDMA device is active here: {', '.join(f'{p.name} {p.state}' for p in table)}")
    found = list(ports(table))
    wanted = gid_of(local_ip)
    for port in found:
        if port.gid == wanted:
            return port
    loopback = ipaddress.ip_address(local_ip.partition("%")[0]).is_loopback
    for port in found:
        if port.infiniband or (loopback and port.gid.startswith(_MAPPED)):
            return port
    raise NoVerbs(f"no RDMA device here carries {local_ip}")


def gid_of(ip: str) -> bytes:
    """RoCE derives a port's GID from its IP address."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return _MAPPED + address.packed if address.version == 4 else address.packed
