"""RDMA devices and the addresses that their ports carry. Sees pyverbs."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyverbs.device import Context, get_device_list
from pyverbs.pyverbs_error import PyverbsError

try:
    from pyverbs import enums as verbs
except ImportError:  # from release 59
    from pyverbs import libibverbs_enums as verbs

__all__ = ["NoVerbs", "Port", "as_no_verbs", "choose_port", "ports", "verbs"]


class NoVerbs(Exception):
    """Verbs cannot be used, in one line that says why."""


@dataclass(frozen=True, slots=True)
class Port:
    """Where a device meets the network. ``gid`` is 16 bytes."""

    device: str
    number: int
    gid: bytes
    gid_index: int
    mtu: int
    lid: int
    infiniband: bool

    def has(self, ip: str) -> bool:
        """This port carries that address: RoCE derives the GID from it."""
        address = ipaddress.ip_address(ip.partition("%")[0])
        mapped = ipaddress.IPv6Address(f"::ffff:{address}") if address.version == 4 else address
        return self.gid == mapped.packed


@contextmanager
def as_no_verbs(device: str) -> Iterator[None]:
    try:
        yield
    except PyverbsError as error:
        raise NoVerbs(f"{device}: {error}") from error


def ports() -> list[Port]:
    """The ports that are up, one entry for each address they carry. Raises NoVerbs if a device cannot be opened."""
    found: list[Port] = []
    for known in get_device_list():
        name = known.name.decode()
        with as_no_verbs(name):
            context = Context(name=name)
            for number in range(1, context.query_device().phys_port_cnt + 1):
                port = context.query_port(number)
                if port.state == verbs.IBV_PORT_ACTIVE:
                    found += _addresses(context, name, number, port)
            context.close()
    return found


def _addresses(context: Any, name: str, number: int, port: Any) -> Iterator[Port]:
    infiniband = port.link_layer == verbs.IBV_LINK_LAYER_INFINIBAND
    for entry in context.query_gid_table(port.gid_tbl_len):
        if entry.port_num == number and (infiniband or entry.gid_type == verbs.IBV_GID_TYPE_ROCE_V2):
            gid = ipaddress.IPv6Address(entry.gid_str()).packed
            yield Port(name, number, gid, entry.gid_index, port.active_mtu, port.lid, infiniband)


def choose_port(local_ip: str) -> Port:
    """The port that carries ``local_ip``; InfiniBand, whose addresses are not derived from it, if there is one; for an
    address of the loopback any that carries an IPv4 address. Raises NoVerbs."""
    found = ports()
    if not found:
        raise NoVerbs("no RDMA device with an active port here")
    loopback = ipaddress.ip_address(local_ip.partition("%")[0]).is_loopback
    for port in found:
        if port.has(local_ip):
            return port
    for port in found:
        if port.infiniband or (loopback and port.gid.startswith(bytes(10) + b"\xff\xff")):
            return port
    raise NoVerbs(f"no RDMA device here carries {local_ip}")
