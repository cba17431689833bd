"""Reads the table of RDMA devices and their ports. Sees pyverbs."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pyverbs.device import Context, get_device_list
from pyverbs.pyverbs_error import PyverbsError

from shoalfs.transport.rdma_table import DevicePort, Gid, NoVerbs

try:
    from pyverbs import enums as verbs
except ImportError:  # from release 59
    from pyverbs import libibverbs_enums as verbs

__all__ = ["as_no_verbs", "device_table", "verbs"]

_STATES: Final = {
    int(getattr(verbs, name)): name.removeprefix("IBV_PORT_").lower()
    for name in ("IBV_PORT_NOP", "IBV_PORT_DOWN", "IBV_PORT_INIT", "IBV_PORT_ARMED", "IBV_PORT_ACTIVE")
}


@contextmanager
def as_no_verbs(device: str) -> Iterator[None]:
    try:
        yield
    except PyverbsError as error:
        raise NoVerbs(f"{device}: {error}") from error


def device_table() -> list[DevicePort]:
    """Every port of every device, in the library's order. Raises NoVerbs if a device cannot be opened."""
    found: list[DevicePort] = []
    with as_no_verbs("RDMA devices"):
        known = get_device_list()
    for device in known:
        name = device.name.decode()
        with as_no_verbs(name):
            context = Context(name=name)
            try:
                for number in range(1, context.query_device().phys_port_cnt + 1):
                    found.append(_port(context, name, number))
            finally:
                context.close()
    return found


def _port(context: Any, name: str, number: int) -> DevicePort:
    port = context.query_port(number)
    gids = tuple(
        Gid(
            entry.gid_index,
            ipaddress.IPv6Address(entry.gid_str()).packed,
            entry.gid_type == verbs.IBV_GID_TYPE_ROCE_V2,
        )
        for entry in context.query_gid_table(port.gid_tbl_len)
        if entry.port_num == number
    )
    infiniband = port.link_layer == verbs.IBV_LINK_LAYER_INFINIBAND
    state = _STATES.get(int(port.state), f"state {port.state}")
    return DevicePort(name, number, state, infiniband, port.active_mtu, port.lid, gids)
