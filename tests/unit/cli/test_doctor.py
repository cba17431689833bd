"""What `shoal doctor` says of machines of many kinds: each wrong line names the next step."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from shoalfs.fs.cli.checkup import Mark, examine
from shoalfs.transport.config import Address, Config, MountTable, NetTable, TlsTable
from shoalfs.transport.errors import PeerUnreachable, UserError
from shoalfs.transport.limits import MIB
from shoalfs.transport.link import LinkInfo
from shoalfs.transport.rdma_table import DevicePort, Gid, NoVerbs, gid_of

IP = "10.1.2.3"
CONFIG = Config(
    net=NetTable(transport="auto"),
    tls=TlsTable(ca="/ca.pem", cert="/cert.pem", key="/key.pem"),
    mount=MountTable(mds=(Address("tcp:m1:7400"),)),
)


def port(state="active", mtu=5, infiniband=False, gids=None):
    usual = (Gid(0, gid_of("fe80::1"), True), Gid(1, gid_of(IP), True))
    return DevicePort("mlx5_0", 1, state, infiniband, mtu, 0, usual if gids is None else tuple(gids))


@dataclass
class Fake:
    """A machine on which all is well, unless a field says otherwise."""

    fuse: str = ""
    programs: tuple[str, ...] = ("fusermount3",)
    compiled: bool = True
    isal: bool = True
    allow_other: bool = True
    files: int = 1 << 20
    memlock: int | None = None
    huge: int = 280
    modules: tuple[str, ...] = ("fuse", "ib_uverbs")
    hardware: bool = True
    uverbs: str = ""
    pyverbs: str = ""
    table: list[DevicePort] | NoVerbs = field(default_factory=lambda: [port()])
    ips: tuple[str, ...] = (IP,)
    pair: NoVerbs | None = None
    certificates: UserError | None = None
    answer: LinkInfo | Exception = field(default_factory=lambda: LinkInfo("verbs", "mlx5_0"))

    def fuse_device(self):
        return self.fuse

    def program(self, name):
        return name in self.programs

    def compiled_part(self):
        return self.compiled

    def erasure_library(self):
        return self.isal

    def users_may_allow_other(self):
        return self.allow_other

    def open_files_max(self):
        return self.files

    def memlock_bytes(self):
        return self.memlock

    def huge_pages_free(self):
        return self.huge

    def rdma_hardware(self):
        return self.hardware

    def module(self, name):
        return name in self.modules

    def verbs_device(self):
        return self.uverbs

    def binding(self):
        return self.pyverbs

    def device_table(self):
        return _or_raise(self.table)

    def local_ips(self, address):
        return list(self.ips) if address == "tcp:m1:7400" else []

    def queue_pair(self, local_ip):
        if self.pair is not None:
            raise self.pair

    def tls(self, config):
        if self.certificates is not None:
            raise self.certificates

    def dial(self, address, config):
        return _or_raise(self.answer)


def _or_raise(value):
    if isinstance(value, Exception):
        raise value
    return value


def test_a_machine_on_which_all_is_well():
    lines = list(examine(Fake(), CONFIG))
    assert {line.mark for line in lines} == {Mark.OK}
    assert not any(line.next for line in lines)
    texts = {line.topic: line.text for line in lines}
    assert texts["device"] == "mlx5_0/1: RoCE, active, packets of 4096 bytes"
    assert texts["GID"] == "mlx5_0/1: 0 fe80::1, 1 10.1.2.3"
    assert texts["address"] == "10.1.2.3: mlx5_0/1, GID 1; a queue pair can be made"
    assert texts["metadata"] == "tcp:m1:7400: over verbs mlx5_0"


@pytest.mark.parametrize(
    ("machine", "topic", "text", "next_"),
    [
        (Fake(fuse="/dev/fuse: no such file", modules=("ib_uverbs",)), "fuse", "no such file", "modprobe fuse"),
        (Fake(fuse="/dev/fuse: Permission denied"), "fuse", "Permission denied", "chmod 666 /dev/fuse"),
        (Fake(programs=()), "fusermount3", "not on PATH", "apt install fuse3"),
        (Fake(certificates=UserError("tls: /ca.pem: no such file")), "tls", "/ca.pem", "[tls]"),
        (Fake(pyverbs="cannot be loaded: No module"), "pyverbs", "No module", "python3-pyverbs"),
        (Fake(modules=("fuse",)), "kernel", "ib_uverbs is not loaded", "modprobe -a ib_uverbs"),
        (Fake(uverbs="/dev/infiniband: No such file"), "kernel", "No such file", "rdma link show"),
        (Fake(table=[]), "device", "none", "rdma link show"),
        (Fake(table=NoVerbs("mlx5_0: Failed to open")), "device", "Failed to open", "ibv_devinfo"),
        (Fake(table=[port("down")]), "device", "mlx5_0/1: RoCE, down", "rdma link show mlx5_0/1"),
        (Fake(table=[port(gids=[Gid(0, gid_of(IP), False)])]), "GID", "none of kind RoCE v2", "ip address show"),
        (Fake(ips=("10.9.9.9",)), "address", "10.9.9.9: no RDMA device here carries", "ip address show"),
        (Fake(pair=NoVerbs("mlx5_0: Cannot allocate memory")), "address", "Cannot allocate", "ulimit -l"),
        (Fake(memlock=64 * 1024), "memlock", "64 KiB: enough for 0 of 128", "LimitMEMLOCK=infinity"),
        (Fake(answer=PeerUnreachable("tcp:m1:7400: refused")), "metadata", "refused", "shoal mds run"),
    ],
)
def test_what_is_wrong_names_the_next_step(machine, topic, text, next_):
    wrong = [line for line in examine(machine, CONFIG) if line.mark is Mark.WRONG]
    assert wrong, "nothing is wrong"
    line = wrong[0]
    assert line.topic == topic
    assert text in line.text
    assert next_ in line.next
    assert all(line.next and "\n" not in line.text + line.next for line in wrong)


@pytest.mark.parametrize(
    ("machine", "topic", "text"),
    [
        (Fake(compiled=False), "compiled part", "locks hold on this machine only"),
        (Fake(allow_other=False), "allow_other", "only this user"),
        (Fake(isal=False), "libisal", "no pools of fragments"),
        (Fake(files=1024), "open files", "1024 at most"),
        (Fake(huge=3), "huge pages", "3 free, 280 of 2 MiB"),
        (Fake(memlock=100 * MIB), "memlock", "enough for 22 of 128"),
        (Fake(table=[port(mtu=3)]), "MTU", "packets of 1024 bytes"),
        (Fake(table=[port(), port("down")]), "device", "mlx5_0/1: RoCE, down"),
        (Fake(ips=()), "addresses", "none of the configuration's"),
        (
            Fake(answer=LinkInfo("tls", reason="the peer declined: no RDMA device here")),
            "metadata",
            "tcp:m1:7400: over tls: the peer declined: no RDMA device here",
        ),
    ],
)
def test_what_could_be_better(machine, topic, text):
    lines = list(examine(machine, CONFIG))
    assert Mark.WRONG not in {line.mark for line in lines}
    (line,) = [line for line in lines if line.mark is Mark.NOTE]
    assert (line.topic, text in line.text) == (topic, True), line


def test_infiniband_needs_no_address_in_its_table():
    ib = port(infiniband=True, gids=[Gid(0, bytes.fromhex("fe80000000000000b8599f0300fc6b3e"), False)])
    assert {line.mark for line in examine(Fake(table=[ib]), CONFIG)} == {Mark.OK}


NONE = Fake(hardware=False, table=[], answer=LinkInfo("tls", reason="no RDMA device here"))
NO_BINDING = Fake(hardware=False, pyverbs="cannot be loaded", answer=LinkInfo("tls", reason="pyverbs"))


@pytest.mark.parametrize("machine", [NONE, NO_BINDING])
def test_a_machine_without_a_device_is_fine_with_auto_and_not_with_rdma(machine):
    marks = {}
    for transport in ("auto", "rdma"):
        wanted = Config(net=NetTable(transport=transport), tls=CONFIG.tls, mount=CONFIG.mount)
        marks[transport] = {line.mark for line in examine(machine, wanted)}
    assert marks == {"auto": {Mark.OK, Mark.NOTE}, "rdma": {Mark.OK, Mark.NOTE, Mark.WRONG}}


def test_verbs_are_not_looked_at_if_nobody_wants_them():
    broken = Fake(pyverbs="cannot be loaded", answer=LinkInfo("tls"))
    lines = list(examine(broken, Config(mount=CONFIG.mount, tls=CONFIG.tls)))
    assert Mark.WRONG not in {line.mark for line in lines}
    assert [line.next for line in lines if line.topic == "rdma"] == [
        "shoal doctor --transport auto: whether it could be"
    ]


def shoal(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "shoalfs", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_command_on_this_machine():
    done = shoal("doctor", "--transport", "auto", "-o", "json")
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(done.stdout)
    assert [list(row) for row in rows] == [["mark", "topic", "text", "next"]] * len(rows)
    assert {"fuse", "pyverbs"} <= {row["topic"] for row in rows}
    assert done.returncode == any(row["mark"] == "wrong" for row in rows)


def test_a_mistake_in_its_options_is_one_line():
    done = shoal("doctor", "--transport", "carrier-pigeon")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
