"""Three metadata nodes on hosts of their own, under a load that remembers what was acknowledged, and every fault that
can be made: processes killed and stopped, networks cut, disks filled, power lost.
"""

import json
import shutil
import time
from collections.abc import Iterator

import pytest

from harness.hosts import require_hosts, run
from harness.mds_group import CLUSTER, Load, MdsGroup, Nemesis, check_all, metadata_group

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True, scope="module")
def hosts_are_possible() -> None:
    require_hosts()


LED_BY_ALL_TRIES = 8  # leaders are elected by chance


@pytest.fixture
def group() -> Iterator[MdsGroup]:
    with metadata_group() as group:
        yield group


@pytest.fixture
def nemesis(group: MdsGroup) -> Nemesis:
    return Nemesis(group, Load(group), seed=1)


def test_killed_and_stopped_processes(group: MdsGroup, nemesis: Nemesis):
    nemesis.kill_leader()
    nemesis.pause_leader()
    nemesis.kill_follower()
    nemesis.kill_all()
    nemesis.pause_leader()
    for _ in range(LED_BY_ALL_TRIES):
        if all(nemesis.load.told()["answers"].get(address) for address in group.addresses):
            break
        nemesis.pause_leader()
    report = check_all(group, nemesis.load)
    assert all(report["answers"].get(address) for address in group.addresses), "each of them has led, and was asked"


def test_cut_networks(group: MdsGroup, nemesis: Nemesis):
    nemesis.cut_leader()
    nemesis.cut_one_way()
    nemesis.cut_follower()
    nemesis.cut_one_way()
    check_all(group, nemesis.load)


def test_a_leader_that_reaches_nobody_stalls_its_clients_and_invents_nothing(group: MdsGroup, nemesis: Nemesis):
    leader, *followers = [group.leader(), *group.followers()]
    for follower in followers:
        follower.cut(leader, *followers)
    time.sleep(1.5)  # its lease runs out, and what was answered before arrives
    assert nemesis.load.stands_still(1.5), "something was acknowledged without a majority"
    for follower in followers:
        follower.heal()
    nemesis.load.wait_progress(50)
    check_all(group, nemesis.load)


def test_power_is_lost(group: MdsGroup, nemesis: Nemesis):
    nemesis.power_of_one()
    nemesis.power_of_all()
    nemesis.power_of_all()
    check_all(group, nemesis.load)


def test_a_full_disk_ends_one_node_and_the_others_go_on(group: MdsGroup, nemesis: Nemesis):
    leader = group.leader()
    filler = leader.fill_disk()
    assert group.end_of(leader) == 1
    line = group.log(leader).splitlines()[-1]
    assert "bytes free" in line or "No space left" in line, line
    assert "Traceback" not in group.log(leader)
    nemesis.load.wait_progress(100)
    filler.unlink()
    group.start(leader)
    nemesis.load.wait_progress(20)
    check_all(group, nemesis.load)


def test_full_disks_of_a_majority_stall_the_group_and_lose_nothing(group: MdsGroup, nemesis: Nemesis):
    full = group.followers()
    fillers = [host.fill_disk() for host in full]
    assert [group.end_of(host) for host in full] == [1, 1]
    time.sleep(1.5)
    assert nemesis.load.stands_still(1.0), "something was acknowledged by one of three"
    for filler in fillers:
        filler.unlink()
    group.start(*full)
    nemesis.load.wait_progress(50)
    check_all(group, nemesis.load)


@pytest.mark.long
def test_clocks_that_jump():
    """The wall clocks of all three, hours forth and back, each at another moment. What is stamped never goes back."""
    library = next(iter(_faketime()), None)
    assert library is not None, "libfaketime is not installed"
    with metadata_group(env={}) as first:
        stamps = {host: first.root / f"{host.name}.clock" for host in first.hosts.hosts}
        first.kill(*first.hosts.hosts)
        for host, stamp in stamps.items():
            stamp.write_text("+0\n")
            first.env = {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(stamp),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
            first.start(host)
        load = Load(first)
        for offset in ("+5h", "-9h"):
            stamps[first.leader()].write_text(f"{offset}\n")
            load.wait_progress(100)
            Nemesis(first, load, seed=2).kill_leader()
        told = json.loads(first.command("status", "-o", "json").stdout)
        assert told["leader"]
        check_all(first, load)


def _faketime() -> list[str]:
    done = run("sh", "-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1", check=False)
    return done.stdout.split()


# --- bad input -------------------------------------------------------------------------------------------------------
def test_a_lost_disk_and_a_foreign_log_are_refused_while_the_group_goes_on(group: MdsGroup, nemesis: Nemesis):
    follower = group.followers()[0]
    group.kill(follower)
    data = follower.root / "mds"
    # The log of another cluster in its place.
    other = group.root / "other.toml"
    other.write_text(f'[cluster]\nid = "{"ab" * 16}"\n[mds]\nnode = 9\nlisten = "unix:{group.root}/o.sock"\n')
    shutil.move(data, follower.root / "kept")
    stranger = follower.start(
        [*_shoal(), "mds", "run", "--config", other, "--data-dir", data], group.root / "stranger.log"
    )
    while "listens at" not in (group.root / "stranger.log").read_text():
        assert stranger.poll() is None
        time.sleep(0.1)
    stranger.terminate()
    stranger.wait(20)
    group.start(follower)
    assert group.end_of(follower) == 2
    assert f"holds cluster {'ab' * 16}, the configuration names {CLUSTER}" in group.log(follower).splitlines()[-1]
    nemesis.load.wait_progress(20)
    # An empty disk under its old number.
    shutil.rmtree(data)
    group.start(follower)
    assert group.end_of(follower) == 2
    assert f"node {follower.number} has lost the log" in group.log(follower).splitlines()[-1]
    nemesis.load.wait_progress(20)
    # Its own disk again.
    shutil.rmtree(data)
    shutil.move(follower.root / "kept", data)
    group.start(follower)
    nemesis.load.wait_progress(20)
    check_all(group, nemesis.load)


def _shoal() -> list[str]:
    import sys

    return [sys.executable, "-m", "shoalfs"]


def test_garbage_on_the_raft_port_disturbs_nobody(group: MdsGroup, nemesis: Nemesis):
    """Without a certificate nobody gets further than the handshake; so the same again from a host that has one."""
    script = group.root / "garbage.py"
    script.write_text(_GARBAGE)
    addresses = [host.address for host in group.hosts.hosts]
    tls = group.hosts.tls(group.hosts.client)
    client = group.hosts.client
    for arguments in (["plain"], ["tls", tls["ca"], tls["cert"], tls["key"]]):
        process = client.start([_shoal()[0], script, ",".join(addresses), *arguments], group.root / "garbage.log")
        assert process.wait(60) == 0, (group.root / "garbage.log").read_text()
    nemesis.load.wait_progress(50)
    assert all(process.poll() is None for process in group.processes.values())
    assert "Traceback" not in "".join(group.log(host) for host in group.hosts.hosts)
    check_all(group, nemesis.load)


_GARBAGE = """
import os, random, socket, ssl, struct, sys

addresses, how, *paths = sys.argv[1:]
chance = random.Random(5)
frame = struct.Struct("<4sBBHHHQIII")
shapes = [
    lambda: b"GET / HTTP/1.1\\r\\n\\r\\n",
    lambda: chance.randbytes(4096),
    lambda: b"\\x89SHL" + chance.randbytes(32),
    lambda: frame.pack(b"\\x89SHL", 1, 1, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0) + bytes(4),
    lambda: frame.pack(b"\\x89SHL", 1, 5, 0, 300, 0, 0, 10, 10, 0)[:20],
    lambda: b"",
]
for number in range(12):
    for address in addresses.split(","):
        connection = socket.create_connection((address, 7400), timeout=10)
        try:
            if how == "tls":
                context = ssl.create_default_context(cafile=paths[0])
                context.load_cert_chain(paths[1], paths[2])
                connection = context.wrap_socket(connection, server_hostname=address)
            connection.sendall(shapes[number % len(shapes)]())
            connection.settimeout(0.1)
            connection.recv(4096)
        except (OSError, ssl.SSLError):
            pass
        finally:
            connection.close()
"""


@pytest.mark.long
def test_everything_together_for_a_while(group: MdsGroup):
    nemesis = Nemesis(group, Load(group), seed=7)
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        nemesis.strike()
    report = check_all(group, nemesis.load)
    print(f"{dict(nemesis.counts)}; {report['operations']} operations, the longest {report['longest_s']:.2f} s")
