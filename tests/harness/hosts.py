"""Hosts of our own on one machine: network namespaces joined by a bridge, and disks whose power can be cut.

A host has an address in a network that exists in these namespaces only, an ext4 filesystem on an image file, and a boot
id of its own. The images lie on an XFS with reflinks: a copy of one, taken while it is in use, is what a power cut at
that moment would leave on the disk, for what was written and not synced is in the page cache above it.

Everything that is made has a name with this process's id in it, and :meth:`Hosts.close` takes all of it down again,
also after a half-made start.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

NETWORK = "10.213.77"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TOOLS = ("ip", "nft", "mkfs.xfs", "mkfs.ext4", "losetup", "mount")


def run(*command: object, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-2000:]}{done.stderr}"
    return done


def require_hosts() -> None:
    """Skip where the machine cannot have them. In CI that fails: a run that cut no power proves nothing."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    why = f"{', '.join(missing)}: not installed" if missing else ""
    if not why and os.geteuid() != 0:
        why = "root is needed for namespaces and loop devices"
    if not why:
        probe = f"shoal-probe-{os.getpid()}"
        done = run("ip", "netns", "add", probe, check=False)
        why = done.stderr.strip()
        if not why:
            run("ip", "netns", "del", probe)
    if not why and run("losetup", "--find", check=False).returncode != 0:
        why = "no loop devices"
    if why:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NOT RUN: hosts of our own: {why}")


class Host:
    """One machine. ``number`` is the last part of its address."""

    def __init__(self, hosts: "Hosts", number: int) -> None:
        self.number = number
        self.name = f"host-{number}"
        self.address = f"{NETWORK}.{number}"
        self.netns = f"shoal-{os.getpid()}-{number}"
        self.root = hosts.root / self.name  # where its disk is mounted
        self.image = hosts.images / f"{self.name}.img"
        self.boot_id = hosts.root / f"{self.name}.boot"
        self.processes: list[subprocess.Popen[bytes]] = []

    # --- its disk ----------------------------------------------------------------------------------------------------
    def make_disk(self, size_mib: int) -> None:
        self.root.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(size_mib << 20)
        # Without lazy initialisation, which would write to the image long after this.
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", self.image, self.root)

    def unmount(self) -> None:
        run("umount", self.root)

    def isolate(self) -> None:
        """From here on nobody hears of anything that happens here: a power cut may count from now."""
        rules = ["add table inet cut"]
        rules += [
            f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
            for hook in ("input", "output")
        ]
        run("ip", "netns", "exec", self.netns, "nft", "; ".join(rules))

    def cut_power(self) -> None:
        """All that runs here is gone, and the disk is as it was at some moment of now, while it was in use. The host
        must be isolated: what it told others after that moment would be lost. It has not booted yet."""
        copy = self.image.with_suffix(f".{secrets.token_hex(4)}")
        run("cp", "--reflink=always", self.image, copy)
        self.kill()
        self.unmount()
        copy.replace(self.image)
        self.new_boot()
        self.mount()
        self.heal()

    def new_boot(self) -> None:
        self.boot_id.write_text(f"{secrets.token_hex(4)}-0000-4000-8000-{secrets.token_hex(6)}\n")

    def fill_disk(self) -> Path:
        """Leave no room. Returns the file that takes it."""
        filler = self.root / "filler"
        with open(filler, "wb", buffering=0) as file:
            for size_bytes in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size_bytes))
            os.fsync(file.fileno())
        return filler

    # --- its network -------------------------------------------------------------------------------------------------
    def cut(self, *others: "Host", incoming: bool = True, outgoing: bool = True) -> None:
        """Drop all packets from or to these."""
        rules = ["add table inet cut"]
        for hook, field, wanted in (("input", "saddr", incoming), ("output", "daddr", outgoing)):
            if wanted:
                rules.append(f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}")
                rules += [f"add rule inet cut {hook} ip {field} {other.address} drop" for other in others]
        run("ip", "netns", "exec", self.netns, "nft", "; ".join(rules))

    def heal(self) -> None:
        run("ip", "netns", "exec", self.netns, "nft", "delete", "table", "inet", "cut", check=False)

    # --- its processes -----------------------------------------------------------------------------------------------
    def start(self, command: Sequence[object], log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Run a command here, in its network and with its boot id."""
        inside = f'mount --bind {self.boot_id} {_BOOT_ID} && exec "$@"'
        with open(log, "ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns, "sh", "-c", inside, "sh", *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | (env or {}),
                cwd="/",
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait(20.0)
        self.processes.clear()


class Hosts:
    """``count`` hosts with numbers from 1 on, and one with number 250, without a disk, for clients."""

    def __init__(self, count: int, disk_mib: int = 256) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="hosts-", dir="/var/tmp"))  # on a disk: /tmp may be memory
        self.images = self.root / "images"
        self.hosts = [Host(self, number) for number in range(1, count + 1)]
        self.client = Host(self, 250)
        try:
            self._make(disk_mib)
        except BaseException:
            self.close()
            raise

    def _make(self, disk_mib: int) -> None:
        self.images.mkdir()
        large = self.root / "large.img"
        with open(large, "wb") as file:
            # XFS of 300 MiB at least; room for every image twice.
            file.truncate(max(512, (2 * len(self.hosts) + 1) * disk_mib) << 20)
        run("mkfs.xfs", "-q", "-m", "reflink=1", large)
        run("mount", "-o", "loop", large, self.images)
        bridge = self.client.netns
        for host in [self.client, *self.hosts]:
            run("ip", "netns", "add", host.netns)
            run("ip", "-n", host.netns, "link", "set", "lo", "up")
            host.new_boot()
        run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", bridge, "addr", "add", f"{self.client.address}/24", "dev", "bridge")
        run("ip", "-n", bridge, "link", "set", "bridge", "up")
        for host in self.hosts:
            here = f"to-{host.number}"
            run(
                *("ip", "-n", bridge, "link", "add", here, "type", "veth"),
                *("peer", "name", "eth0", "netns", host.netns),
            )
            run("ip", "-n", bridge, "link", "set", here, "master", "bridge", "up")
            run("ip", "-n", host.netns, "addr", "add", f"{host.address}/24", "dev", "eth0")
            run("ip", "-n", host.netns, "link", "set", "eth0", "up")
            host.make_disk(disk_mib)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.root / "ca.pem"))
        for host in [self.client, *self.hosts]:
            certificate = authority.issue_cert(host.address)
            certificate.private_key_pem.write_to_path(str(self.root / f"{host.name}.key"))
            for blob in certificate.cert_chain_pems:
                blob.write_to_path(str(self.root / f"{host.name}.pem"), append=True)

    def tls(self, host: Host) -> dict[str, str]:
        """The certificates of a host, as the table ``tls`` of a configuration has them."""
        cert, key = self.root / f"{host.name}.pem", self.root / f"{host.name}.key"
        return {"ca": str(self.root / "ca.pem"), "cert": str(cert), "key": str(key)}

    def close(self) -> None:
        for host in [*self.hosts, self.client]:
            host.kill()
            run("ip", "netns", "del", host.netns, check=False)
        for path in [*(host.root for host in self.hosts), self.images]:
            if os.path.ismount(path) and run("umount", path, check=False).returncode != 0:
                run("umount", "-l", path)
        shutil.rmtree(self.root)
