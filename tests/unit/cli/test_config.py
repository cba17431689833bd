"""The configuration file: what it accepts, and the line that a mistake is answered with."""

import pytest

from shoalfs.fs.cli.mount import mount_options, parse_options
from shoalfs.transport.config import Address, ByteSize, Config, load, parse, render
from shoalfs.transport.errors import UserError
from shoalfs.transport.limits import CHUNK_BYTES_DEFAULT


def refused(tables):
    with pytest.raises(UserError) as caught:
        parse(tables, origin="F")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("configuration: F: ")
    return text.removeprefix("configuration: F: ")


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        ("64KiB", 65536),
        ("4 MiB", 4 << 20),
        ("1GiB", 1 << 30),
        ("2tib", 2 << 40),
    ],
)
def test_sizes(written, size_bytes):
    assert ByteSize.parse(written) == size_bytes


@pytest.mark.parametrize("written", [-1, True, 1.5, "", "KiB", "4 MB", "4M", "1.5GiB", None, "4MiB extra"])
def test_what_is_no_size(written):
    with pytest.raises(ValueError, match="expected a size"):
        ByteSize.parse(written)


@pytest.mark.parametrize("written", ["unix:/run/a.sock", "tcp:127.0.0.1:7400", "tcp:host.name:0", "tcp:[::1]:7400"])
def test_addresses(written):
    assert Address.parse(written) == written


@pytest.mark.parametrize(
    "written", ["", "127.0.0.1:7400", "tcp:host", "tcp:host:99999", "unix:relative", "tcp:::1:5", 5]
)
def test_what_is_no_address(written):
    with pytest.raises(ValueError, match='expected "unix:/path"'):
        Address.parse(written)


def test_unix_paths_are_limited_by_the_kernel():
    assert Address.parse("unix:/" + "x" * 106)
    with pytest.raises(ValueError, match="108 bytes, the kernel allows 107"):
        Address.parse("unix:/" + "x" * 107)


def test_an_empty_file_is_the_defaults():
    assert parse({}, origin="F") == Config()
    assert Config().mds.chunk_bytes == CHUNK_BYTES_DEFAULT


def test_a_full_file(tmp_path):
    path = tmp_path / "shoal.toml"
    path.write_text(
        """
        [cluster]
        id = "00112233445566778899aabbccddeeff"
        [mds]
        node = 2
        peers = { 1 = "tcp:a:7400", 2 = "tcp:b:7400" }
        replicas = 3
        chunk_bytes = "1MiB"
        [chunkserver]
        mds = ["tcp:a:7400"]
        targets = [{ path = "/d1" }, { path = "/d2", size = "1GiB" }]
        [mount]
        close = "durable"
        """
    )
    config = load(str(path))
    assert config.cluster.id_bytes == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert config.mds.peers == {1: "tcp:a:7400", 2: "tcp:b:7400"}
    assert config.mds.acknowledgements == 2
    assert config.chunkserver.targets[0].size is None
    assert config.chunkserver.targets[1].size == 1 << 30
    assert config.mount.close == "durable"


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (
            {"mount": {"atr_timeout_ms": 1}},
            "mount.atr_timeout_ms: unknown key; did you mean mount.attr_timeout_ms?",
        ),
        ({"mont": {}}, "mont: unknown key; did you mean mount?"),
        ({"mds": {"dirty_bytes": 1}}, "mds.dirty_bytes: unknown key; did you mean mount.dirty_bytes?"),
        ({"dirty_bytes": 1}, "dirty_bytes: unknown key; did you mean mount.dirty_bytes?"),
        (
            {"chunkserver": {"targets": [{"path": "/a"}, {"pth": "/b"}]}},
            "chunkserver.targets[1].pth: unknown key; did you mean chunkserver.targets[1].path?",
        ),
        ({"tls": {"zzz": 1}}, "tls.zzz: unknown key; known here: ca, cert, key"),
    ],
)
def test_a_wrong_key_is_answered_with_the_nearest(tables, line):
    assert refused(tables) == line


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"mount": {"attr_timeout_ms": "1s"}}, "mount.attr_timeout_ms: expected int, got str"),
        ({"mount": {"attr_timeout_ms": -1}}, "mount.attr_timeout_ms: expected int >= 0"),
        ({"mount": {"close": "never"}}, "mount.close: invalid enum value 'never'"),
        ({"mount": 3}, "mount: expected a table, got int"),
        ({"mount": {"mds": "tcp:a:1"}}, "mount.mds: expected a list, got str"),
        (
            {"mount": {"mds": ["tcp:a:1", "b"]}},
            'mount.mds[1]: expected "unix:/path" or "tcp:host:port", got \'b\'',
        ),
        (
            {"mount": {"dirty_bytes": "4 MB"}},
            'mount.dirty_bytes: expected a size like "64KiB", "4MiB" or a number of bytes, got \'4 MB\'',
        ),
        ({"chunkserver": {"targets": [{}]}}, "chunkserver.targets[0].path: missing: it has no default"),
        ({"mds": {"replicas": 2, "min_ack": 3}}, "mds: min_ack is 3, more than replicas = 2"),
        ({"mds": {"chunk_bytes": 65537}}, "mds: chunk_bytes: expected 64KiB to 64MiB, a multiple of 64KiB"),
        ({"mds": {"inline_bytes": "1MiB"}}, "mds: inline_bytes: expected 0 to 65512"),
        ({"mds": {"peers": {"2": "tcp:a:1"}}}, "mds: peers: expected an entry for this node, 1"),
        ({"tls": {"ca": "/ca.pem"}}, "tls: ca, cert and key are needed together"),
    ],
)
def test_a_wrong_value_is_answered_with_what_is_expected(tables, line):
    assert refused(tables) == line


def test_a_wrong_cluster_id_names_its_path():
    assert refused({"cluster": {"id": "xyz"}}).startswith("cluster.id: expected str matching regex")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "shoal.toml"
    path.write_text("[mount]\nattr_timeout_ms = 5\nentry_timeout_ms = 6\n")
    config = load(str(path), {"mount.attr_timeout_ms": 9, "mount.entry_timeout_ms": None, "mds.node": 3})
    assert config.mount.attr_timeout_ms == 9
    assert config.mount.entry_timeout_ms == 6
    assert config.mount.close == "commit"
    assert config.mds.node == 3


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.toml: no such file: create it, or leave --config out"):
        load(str(tmp_path / "nothing.toml"))


def test_a_directory_and_broken_toml_are_lines_too(tmp_path):
    with pytest.raises(UserError, match="Is a directory"):
        load(str(tmp_path))
    path = tmp_path / "bad.toml"
    path.write_text("[mount\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid TOML"):
        load(str(path))


def test_what_is_rendered_reads_back(tmp_path):
    tables = {
        "cluster": {"id": "", "name": 'a "quoted" \\ name\n'},
        "mds": {"node": 2, "peers": {1: "tcp:a:1", 2: "tcp:b:1"}, "chunk_bytes": ByteSize(1 << 20)},
        "chunkserver": {"targets": [{"path": "/ä"}, {"path": "/b", "size": 5}], "mds": ["tcp:a:1"]},
        "mount": {"allow_other": True},
    }
    path = tmp_path / "shoal.toml"
    path.write_text(render(tables))
    config = load(str(path))
    assert config.cluster.name == tables["cluster"]["name"]
    assert config.mds.peers == tables["mds"]["peers"]
    assert [target.path for target in config.chunkserver.targets] == ["/ä", "/b"]
    assert config.mount.allow_other is True


def test_how_copies_are_sent_is_an_option_of_the_mount():
    assert load(None, {}).mount.replication == "fanout"
    chosen = load(None, parse_options("replication=chain"))
    assert mount_options(chosen, "/mnt").replication == "chain"
    with pytest.raises(UserError, match="replication"):
        load(None, parse_options("replication=ring"))
