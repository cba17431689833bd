"""The one-machine cluster: its parts, and that their configuration is what the servers accept."""

import msgspec
import pytest

from shoalfs.chunkserver.cli import server_options as chunkserver_options
from shoalfs.fs.cli import embedded
from shoalfs.fs.cli.mount import mount_options, parse_options
from shoalfs.fs.cli.state import ClusterRecord, StateDir
from shoalfs.fs.cli.up import settle
from shoalfs.mds.cli import server_options as mds_options
from shoalfs.transport.config import Config, load, parse, render
from shoalfs.transport.errors import UserError

ID = "0123456789abcdef" * 2


def written(tmp_path, tables):
    path = tmp_path / "x.toml"
    path.write_text(render(tables))
    return load(str(path))


def test_three_metadata_nodes_know_each_other(tmp_path):
    state = StateDir("/s")
    daemons = embedded.servers(state, ClusterRecord(ID, 3, 2, 2, 1 << 30))
    assert [daemon.name for daemon in daemons] == [
        "mds-1",
        "mds-2",
        "mds-3",
        "chunkserver-1",
        "chunkserver-2",
    ]
    options = [mds_options(written(tmp_path, daemon.tables)) for daemon in daemons[:3]]
    assert [option.node for option in options] == [1, 2, 3]
    assert {tuple(option.members.items()) for option in options} == {
        tuple((node, f"unix:/s/sock/mds-{node}.sock") for node in (1, 2, 3))
    }
    assert all(option.cluster_id == bytes.fromhex(ID) for option in options)
    assert {(option.replicas, option.min_ack) for option in options} == {(2, 1)}
    assert len({option.data_dir for option in options}) == 3


def test_chunkservers_find_the_metadata_service(tmp_path):
    daemon = embedded.servers(StateDir("/s"), ClusterRecord(ID, 1, 2, 1, 1 << 30))[-1]
    options = chunkserver_options(written(tmp_path, daemon.tables))
    assert options.node == "chunkserver-2"
    assert options.listen == daemon.address == "unix:/s/sock/chunkserver-2.sock"
    assert options.mds == ("unix:/s/sock/mds-1.sock",)
    assert [target.path for target in options.targets] == ["/s/data/chunkserver-2"]
    assert daemon.arguments("/f") == ["chunkserver", "run", "--config", "/f"]


def test_the_mount_finds_the_metadata_service(tmp_path):
    config = written(tmp_path, embedded.mount_tables(StateDir("/s"), ClusterRecord(ID, 1, 1, 1, 1 << 30)))
    options = mount_options(config, "/mnt")
    assert (options.mountpoint, options.metadata) == ("/mnt", ("unix:/s/sock/mds-1.sock",))
    assert options.cluster_id == bytes.fromhex(ID)


def test_options_hold_plain_values_only(tmp_path):
    """A message that carries a value of a configuration type cannot be encoded."""
    config = parse(
        {
            "mds": {"peers": {"1": "tcp:a:1"}, "chunk_bytes": "1MiB", "inline_bytes": "1KiB"},
            "chunkserver": {
                "advertise": "tcp:c:1",
                "mds": ["tcp:a:1"],
                "targets": [{"path": "/d", "size": "1GiB"}],
            },
            "mount": {"mds": ["tcp:a:1"], "dirty_bytes": "1MiB", "cache_bytes": "1MiB"},
        },
        "F",
    )
    for options in (mds_options(config), chunkserver_options(config), mount_options(config, "/m")):
        msgspec.json.encode(options)
    for daemon in embedded.servers(StateDir("/s"), ClusterRecord(ID, 3, 2, 2, 1 << 30)):
        msgspec.json.encode(daemon)


def test_a_long_state_directory_is_refused_before_anything_is_made():
    with pytest.raises(UserError, match=r"socket path of 1\d\d bytes, the kernel allows 107: .* --state"):
        embedded.servers(StateDir("/" + "s" * 100), ClusterRecord(ID, 1, 1, 1, 1 << 30))


def test_a_server_without_targets_or_metadata_service_is_refused():
    with pytest.raises(UserError, match=r"chunkserver\.targets: none"):
        chunkserver_options(Config())
    with pytest.raises(UserError, match=r"chunkserver\.mds: none"):
        chunkserver_options(parse({"chunkserver": {"targets": [{"path": "/d"}]}}, "F"))


def test_what_is_made_when_nothing_is_said():
    made = settle(None, None, None, None, "/s")
    assert (made.mds, made.nodes, made.replicas) == (1, 2, 2)
    assert len(bytes.fromhex(made.cluster_id)) == 16
    assert settle(None, None, 1, None, "/s").replicas == 1
    assert settle(None, None, None, None, "/s").cluster_id != made.cluster_id


@pytest.mark.parametrize(
    ("mds", "nodes", "replicas", "said"),
    [
        (2, None, None, "--mds 2: expected 1, or 3"),
        (None, 0, None, "--nodes 0: expected 1 to"),
        (None, 99, None, "--nodes 99: expected 1 to"),
        (None, 2, 3, "--replicas 3: expected 1 to 2"),
        (None, 2, 0, "--replicas 0: expected 1 to 2"),
    ],
)
def test_an_impossible_cluster_is_refused(mds, nodes, replicas, said):
    with pytest.raises(UserError, match=said):
        settle(None, mds, nodes, replicas, "/s")


def test_a_made_cluster_keeps_its_shape():
    made = ClusterRecord(ID, 1, 2, 2, 1 << 30)
    assert settle(made, None, None, None, "/s") == made
    assert settle(made, 1, 2, 2, "/s") == made
    with pytest.raises(UserError, match="--nodes 3: /s: this cluster was made with 2"):
        settle(made, None, 3, None, "/s")


def test_options_of_mount_8():
    settings = parse_options(
        "ro,noexec,nolock,relatime,subdir=/a/b,_netdev,x-systemd.automount,attr-timeout-ms=5,cache_bytes=1GiB,close=durable,"
    )
    assert settings == {
        "mount.read_only": True,
        "mount.no_exec": True,
        "mount.no_lock": True,
        "mount.subdir": "/a/b",
        "mount.attr_timeout_ms": 5,
        "mount.cache_bytes": "1GiB",
        "mount.close": "durable",
    }
    options = mount_options(load(None, {**settings, "mount.mds": ["tcp:a:1"]}), "/mnt")
    assert (options.read_only, options.no_exec, options.attr_timeout_ms, options.durable_close) == (True, True, 5, True)
    assert (options.cache_bytes, options.subdir) == (1 << 30, "/a/b")


def test_a_wrong_option_of_mount_8_is_answered_like_a_wrong_key():
    with pytest.raises(UserError, match=r"-o cash-bytes=1GiB: unknown option: did you mean cache_bytes\?"):
        parse_options("cash-bytes=1GiB")
    with pytest.raises(UserError, match="-o nonsense: unknown option: known are ro, noexec, nolock, mds, "):
        parse_options("ro,nonsense")
    with pytest.raises(UserError, match="unmount it and mount it again"):
        parse_options("remount,ro")
    with pytest.raises(UserError, match=r"mount\.attr_timeout_ms: expected int, got str"):
        load(None, parse_options("attr-timeout-ms=soon"))
