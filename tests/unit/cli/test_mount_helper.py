"""mount.shoal speaks mount(8)'s language: its arguments and its exit codes."""

import pytest

from shoalfs.fs.cli import mount_helper
from shoalfs.transport.errors import UserError


def words(*arguments: str) -> list[str]:
    return mount_helper.command(mount_helper.parse_arguments(arguments))


def test_a_line_of_fstab():
    """As mount(8) passes it on."""
    assert words("tcp:a:7400,tcp:b:7400", "/mnt", "-o", "rw,noatime,_netdev,subdir=/home") == [
        *("mount", "-d", "-o", "rw,noatime,_netdev,subdir=/home"),
        *("tcp:a:7400,tcp:b:7400", "/mnt"),
    ]
    assert words("/etc/shoal.toml", "/mnt", "-n") == ["mount", "-d", "--config", "/etc/shoal.toml", "/mnt"]
    assert words("-o", "ro", "-o", "noexec", "unix:/s", "/mnt")[3] == "ro,noexec"


def test_sloppy_leaves_out_what_is_unknown():
    assert words("tcp:a:1", "/mnt", "-s", "-o", "nonsense,ro")[3] == "ro"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tcp:a:1"], "expected SOURCE TARGET"),
        (["tcp:a:1", "/mnt", "/more"], "expected SOURCE TARGET"),
        (["tcp:a:1", "/mnt", "-z"], "option -z not recognized"),
        (["tcp:a:1", "/mnt", "-o", "ro,nonsense"], "-o nonsense: unknown option"),
        (["tcp:a:1", "/mnt", "-N", "1"], "-N: other mount namespaces"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_1(capsys, arguments, said):
    with pytest.raises(UserError, match=said):
        words(*arguments)
    assert mount_helper.mount(arguments, lambda words: pytest.fail("not to be run")) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_exit_codes():
    for code, expected in ((0, 0), (1, 32), (2, 1), (130, 32)):
        assert mount_helper.mount(["tcp:a:1", "/mnt"], lambda words, code=code: code) == expected
    assert mount_helper.mount(["tcp:a:1", "/mnt", "-f"], lambda words: pytest.fail("not to be run")) == 0
