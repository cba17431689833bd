"""What operators' commands make of numbers and places that nobody can mean: one line, before anybody is asked."""

import os

import pytest

from shoalfs import __main__ as entry

HUGE = str(10**30)
NOBODY = ("--mds", "unix:/nonexistent/socket")


def said(capfd, *arguments):
    code = entry.main(arguments)
    told = capfd.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    return code, line


@pytest.mark.parametrize("number", [HUGE, "0"])
@pytest.mark.parametrize(
    "command",
    [
        ("target", "drain"),
        ("target", "resume"),
        ("target", "remove"),
        ("session", "evict"),
        ("mds", "leave"),
        ("mds", "transfer-leader"),
        ("gc", "brake"),
        ("pool", "create", "p", "--replicas"),
        ("pool", "create", "p", "--replicas", "2", "--min-ack"),
        ("pool", "set", "p", "--replicas"),
        ("pool", "set", "p", "--min-ack"),
    ],
)
def test_numbers_that_cannot_be(capfd, command, number):
    code, line = said(capfd, *command, number, *NOBODY)
    assert code == 2
    assert line.startswith("shoal: invalid value for ")
    assert "Input should be greater than or equal to 1:" in line or "Input should be less than or equal to" in line


def test_a_pool_is_chosen_for_directories_of_mounts_only(capfd, tmp_path):
    code, line = said(capfd, "pool", "use", "p", str(tmp_path))
    assert (code, line) == (2, f"shoal: pool use: {tmp_path}: not in a shoalfs mount")
    assert "trusted.shoal.pool" not in os.listxattr(tmp_path)
    code, line = said(capfd, "pool", "use", "p", str(tmp_path / "none"))
    assert (code, line) == (2, f"shoal: pool use: {tmp_path / 'none'}: No such file or directory")


def test_headers_of_what_is_no_target(capfd, tmp_path):
    code, line = said(capfd, "chunkserver", "headers", str(tmp_path))
    assert (code, line) == (2, f"shoal: headers: {tmp_path}: no directory of a target: there is no target.json")
    assert os.listdir(tmp_path) == []
