"""The machine that `shoal doctor` looks at."""

import os
import resource
import shutil
import socket
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from shoalfs.transport.config import Config
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.limits import DIAL_TIMEOUT_MS
from shoalfs.transport.link import LinkInfo
from shoalfs.transport.rdma_table import DevicePort

_FUSE: Final = "/dev/fuse"
_FUSE_CONF: Final = "/etc/fuse.conf"
_VERBS: Final = "/dev/infiniband"
_HUGE_PAGES_FREE: Final = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"


class ThisMachine:
    """See :class:`~shoalfs.fs.cli.checkup.Machine`."""

    def fuse_device(self) -> str:
        return _cannot_open(_FUSE)

    def program(self, name: str) -> bool:
        return shutil.which(name) is not None

    def compiled_part(self) -> bool:
        from shoalfs.fs import native

        return native.shim is not None

    def erasure_library(self) -> bool:
        from shoalfs.transport import erasure

        return erasure.is_there()

    def users_may_allow_other(self) -> bool:
        if os.geteuid() == 0:
            return True
        try:
            with open(_FUSE_CONF, encoding="utf-8", errors="replace") as file:
                return any(line.strip() == "user_allow_other" for line in file)
        except OSError:
            return False

    def open_files_max(self) -> int:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return 1 << 30 if hard == resource.RLIM_INFINITY else hard

    def memlock_bytes(self) -> int | None:
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return None if hard == resource.RLIM_INFINITY or os.geteuid() == 0 else hard

    def huge_pages_free(self) -> int:
        try:
            with open(_HUGE_PAGES_FREE, encoding="ascii") as file:
                return int(file.read())
        except OSError:
            return 0

    def rdma_hardware(self) -> bool:
        try:
            return bool(os.listdir("/sys/class/infiniband"))
        except OSError:
            return False

    def module(self, name: str) -> bool:
        shown = {"fuse": "/sys/class/misc/fuse", "ib_uverbs": "/sys/class/infiniband_verbs"}
        return os.path.exists(f"/sys/module/{name}") or os.path.exists(shown.get(name, ""))

    def verbs_device(self) -> str:
        try:
            names = sorted(name for name in os.listdir(_VERBS) if name.startswith("uverbs"))
        except OSError as error:
            return f"{_VERBS}: {error.strerror}"
        if not names:
            return f"{_VERBS}: holds no uverbs device: no driver has found a device"
        troubles = [_cannot_open(f"{_VERBS}/{name}") for name in names]
        return troubles[0] if all(troubles) else ""

    def binding(self) -> str:
        try:
            from shoalfs.transport import rdma  # noqa: F401
        except ImportError as error:
            return f"cannot be loaded: {error}"
        return ""

    def device_table(self) -> Sequence[DevicePort]:
        from shoalfs.transport.rdma_ports import device_table

        return device_table()

    def local_ips(self, address: str) -> list[str]:
        host, _, port = address.removeprefix("tcp:").rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port) or 1, type=socket.SOCK_DGRAM)
        except OSError:
            return []
        return [ip for ip in (_way_out(family, place) for family, _, _, _, place in found[:1]) if ip]

    def queue_pair(self, local_ip: str) -> None:
        import trio

        from shoalfs.transport.rdma import process_verbs

        async def make() -> None:
            with socket.socket() as beside:
                process_verbs().pair(local_ip, beside.fileno(), "doctor", pulls=False).close()
            await trio.lowlevel.checkpoint()

        trio.run(make)

    def tls(self, config: Config) -> None:
        from shoalfs.transport.carrier import Carriers

        Carriers.standard(config.tls.paths)

    def dial(self, address: str, config: Config) -> LinkInfo:
        import trio

        from shoalfs.transport.carrier import Carriers

        async def ask() -> LinkInfo:
            carriers = Carriers.standard(config.tls.paths, config.net.transport)
            try:
                with trio.fail_after(DIAL_TIMEOUT_MS / 1000), closing(await carriers.dial(address)) as link:
                    await link.handshake()
                    return link.info
            except trio.TooSlowError:
                raise PeerUnreachable(f"{address}: no connection within {DIAL_TIMEOUT_MS} ms") from None

        return trio.run(ask)


def _cannot_open(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _way_out(family: int, place: tuple[object, ...]) -> str:
    """The address that the kernel would send from; nothing is sent. "" if there is no way, or it is the loopback."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(place)
        except OSError:
            return ""
        ip = str(sock.getsockname()[0])
    return "" if ip.startswith("127.") or ip == "::1" else ip
