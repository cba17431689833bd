"""Programs that people use, on real input, with their own checks of the result."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.trees import assert_same, make_tree

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def run(*command: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program that has to succeed; returns its stdout."""
    if shutil.which(str(command[0])) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{command[0]} is not installed")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with everything, on the local filesystem."""
    make_tree(tmp_path / "tree")
    return tmp_path / "tree"


# --- copies ----------------------------------------------------------------------------------------------------------


def test_cp_a_there_around_and_back(mnt: Path, tree: Path, tmp_path: Path):
    run("cp", "-a", tree, mnt / "there", cwd=mnt)
    assert_same(tree, mnt / "there")
    run("cp", "-a", mnt / "there", mnt / "around", cwd=mnt)
    assert_same(tree, mnt / "around")
    run("cp", "-a", mnt / "around", tmp_path / "back", cwd=mnt)
    assert_same(tree, tmp_path / "back")


def test_cp_keeps_holes(mnt: Path, tree: Path):
    run("cp", "--sparse=always", tree / "holes", mnt / "holes", cwd=mnt)
    assert (mnt / "holes").read_bytes() == (tree / "holes").read_bytes()
    assert (mnt / "holes").stat().st_blocks * 512 < 1_000_000


def test_tar_packs_and_unpacks(mnt: Path, tree: Path):
    options = ("--xattrs", "--sparse", "--format=posix")
    run("tar", "-c", *options, "-f", mnt / "a.tar", "-C", tree, ".", cwd=mnt)
    (mnt / "out").mkdir()
    run("tar", "-x", *options, "-p", "-f", mnt / "a.tar", "-C", mnt / "out", cwd=mnt)
    assert_same(tree, mnt / "out")
    run("tar", "-c", *options, "-f", mnt / "again.tar", "-C", mnt / "out", ".", cwd=mnt)
    with tarfile.open(mnt / "again.tar") as archive:
        assert len(archive.getnames()) == len(list(tree.rglob("*"))) + 1


def test_rsync_copies_and_finds_nothing_left_to_do(mnt: Path, tree: Path):
    run("rsync", "-aHX", f"{tree}/", mnt / "copy", cwd=mnt)
    assert_same(tree, mnt / "copy")
    assert run("rsync", "-aHX", "--itemize-changes", f"{tree}/", mnt / "copy", cwd=mnt) == ""
    (tree / "d0" / "sub" / "file3").write_bytes(b"changed")
    (tree / "again").unlink()
    os.utime(tree, ns=(1, 2))  # rsync leaves a difference within one second alone
    run("rsync", "-aHX", "--delete", "--checksum", f"{tree}/", mnt / "copy", cwd=mnt)
    assert_same(tree, mnt / "copy")


# --- developers' tools -----------------------------------------------------------------------------------------------


def test_git(mnt: Path):
    repository = mnt / "repository"
    run("git", "init", "-q", "-b", "main", repository, cwd=mnt, env=GIT)
    for number in range(120):
        path = repository / f"d{number % 7}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {number}\n" * (number + 1))
    run("git", "add", ".", cwd=repository, env=GIT)
    run("git", "commit", "-q", "-m", "first", cwd=repository, env=GIT)
    (repository / "d0" / "file0.txt").write_text("changed\n")
    run("git", "mv", "d1", "moved", cwd=repository, env=GIT)
    run("git", "commit", "-q", "-a", "-m", "second", cwd=repository, env=GIT)
    run("git", "clone", "-q", repository, mnt / "clone", cwd=mnt, env=GIT)
    run("git", "gc", "-q", "--prune=now", cwd=repository, env=GIT)
    run("git", "fsck", "--full", "--strict", cwd=repository, env=GIT)
    run("git", "checkout", "-q", "HEAD~1", cwd=mnt / "clone", env=GIT)
    run("git", "fsck", "--full", "--strict", cwd=mnt / "clone", env=GIT)
    assert run("git", "status", "--porcelain", cwd=repository, env=GIT) == ""
    assert (mnt / "clone" / "d0" / "file0.txt").read_text() == "line 0\n"


def test_gcc_builds_a_program_that_runs(mnt: Path):
    (mnt / "square.h").write_text("int square(int x);\n")
    (mnt / "square.c").write_text('#include "square.h"\nint square(int x) { return x * x; }\n')
    (mnt / "main.c").write_text(
        '#include <stdio.h>\n#include "square.h"\nint main(void) { printf("%d\\n", square(12)); return 0; }\n'
    )
    run("gcc", "-c", "-g", "square.c", "main.c", cwd=mnt)
    run("gcc", "-o", "program", "square.o", "main.o", cwd=mnt)
    assert run(mnt / "program", cwd=mnt) == "144\n"


def test_compileall_and_import(mnt: Path):
    package = mnt / "package"
    package.mkdir()
    for number in range(60):
        (package / f"module{number}.py").write_text(f"VALUE = {number}\n" + "# filler\n" * 50)
    (package / "__init__.py").touch()
    run(sys.executable, "-m", "compileall", "-q", package, cwd=mnt)
    assert len(list((package / "__pycache__").iterdir())) == 61
    script = "import package.module7 as m, os; print(m.VALUE, os.path.exists(m.__cached__))"
    assert run(sys.executable, "-c", script, cwd=mnt) == "7 True\n"


def make_wheel(path: Path) -> None:
    """A package of a hundred modules and one command, as pip installs it."""
    info = "tiny_package-1.0.dist-info"
    files = {
        "tiny_package/__init__.py": "def main():\n    print('installed')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny = tiny_package:main\n",
    }
    files |= {f"tiny_package/module{number}.py": "# filler\n" * number for number in range(100)}
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_pip_installs_into_a_virtual_environment(mnt: Path):
    wheel = mnt / "tiny_package-1.0-py3-none-any.whl"
    make_wheel(wheel)
    run(sys.executable, "-m", "venv", "--without-pip", mnt / "venv", cwd=mnt)
    pip = (sys.executable, "-m", "pip", "--python", mnt / "venv" / "bin" / "python")
    run(*pip, "install", "-q", "--no-index", "--disable-pip-version-check", wheel, cwd=mnt)
    assert run(mnt / "venv" / "bin" / "tiny", cwd=mnt) == "installed\n"
    run(*pip, "uninstall", "-q", "-y", "tiny-package", cwd=mnt)
    assert not (mnt / "venv" / "bin" / "tiny").exists()


# --- databases -------------------------------------------------------------------------------------------------------

INSERTER = """
import sqlite3, sys
path, who = sys.argv[1], int(sys.argv[2])
connection = sqlite3.connect(path, timeout=60)
for number in range(40):
    with connection:
        connection.execute("insert into entries values (?, ?, ?)", (who, number, "x" * 500))
connection.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_with_several_processes(mnt: Path, journal: str):
    path = mnt / "data.db"
    database = sqlite3.connect(path)
    assert database.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    database.execute("create table entries (who int, number int, filler text, unique (who, number))")
    database.commit()
    writers = [subprocess.Popen([sys.executable, "-c", INSERTER, path, str(who)]) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 3
    assert database.execute("select count(*), count(distinct who) from entries").fetchone() == (120, 3)
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.execute("delete from entries where number % 2")
    database.commit()
    database.execute("vacuum")
    assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()
    assert sorted(os.listdir(mnt)) == ["data.db"]


def test_sqlite_rolls_back(mnt: Path):
    database = sqlite3.connect(mnt / "data.db")
    database.execute("create table entries (value int)")
    database.executemany("insert into entries values (?)", [(number,) for number in range(5000)])
    database.commit()
    database.execute("pragma cache_size=5")
    database.execute("update entries set value = -1")
    database.rollback()
    assert database.execute("select sum(value) from entries").fetchone() == (sum(range(5000)),)
    database.close()


# --- small tools -----------------------------------------------------------------------------------------------------


def test_dd_reads_and_writes_large_blocks(mnt: Path):
    run("dd", "if=/dev/urandom", "of=a", "bs=1M", "count=24", "conv=fsync", "status=none", cwd=mnt)
    run("dd", "if=a", "of=b", "bs=1M", "status=none", cwd=mnt)
    run("dd", "if=a", "of=b", "bs=4k", "count=3", "seek=100", "conv=notrunc", "status=none", cwd=mnt)
    expected = bytearray((mnt / "a").read_bytes())
    expected[400 * 1024 : 412 * 1024] = expected[: 12 * 1024]
    assert (mnt / "b").read_bytes() == expected


def test_sort_grep_find_and_sed(mnt: Path):
    for number in range(100):
        (mnt / f"d{number % 5}").mkdir(exist_ok=True)
        (mnt / f"d{number % 5}" / f"f{number:03}").write_text(f"value {number * 7 % 100:03}\nother\n")
    assert len(run("grep", "-r", "value 04", ".", cwd=mnt).splitlines()) == 10
    assert len(run("find", ".", "-type", "f", "-size", "1", "-newermt", "2000-01-01", cwd=mnt).splitlines()) == 100
    run("sh", "-c", "cat d*/f* | sort -u -o sorted", cwd=mnt)
    assert len((mnt / "sorted").read_text().splitlines()) == 101
    run("sed", "-i", "s/other/another/", "sorted", cwd=mnt)
    assert (mnt / "sorted").read_text().startswith("another\n")
    run("find", ".", "-name", "f*", "-delete", cwd=mnt)
    assert len(os.listdir(mnt / "d0")) == 0


def test_rm_rf_and_mv_of_trees(mnt: Path, tree: Path, tmp_path: Path):
    run("mv", tree, mnt / "moved", cwd=mnt)  # from another filesystem: a copy and a removal
    assert not tree.exists()
    run("mv", mnt / "moved", mnt / "renamed", cwd=mnt)
    run("mv", mnt / "renamed", tmp_path / "home", cwd=mnt)
    make_tree(tmp_path / "again")
    assert_same(tmp_path / "home", tmp_path / "again")
    run("cp", "-a", tmp_path / "home", mnt / "doomed", cwd=mnt)
    run("rm", "-rf", mnt / "doomed", cwd=mnt)
    assert os.listdir(mnt) == []


def test_flock_excludes_on_one_mount(mnt: Path):
    script = "read number < counter; number=$((number + 1)); sleep 0.01; echo $number > counter"
    (mnt / "counter").write_text("0\n")
    loop = f"for i in 1 2 3 4 5 6 7 8 9 10; do flock lock sh -c '{script}'; done"
    workers = [subprocess.Popen(["sh", "-c", loop], cwd=mnt) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0] * 3
    assert (mnt / "counter").read_text() == "30\n"
