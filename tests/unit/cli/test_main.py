"""Errors become one line and an exit code, in one place; and help is quick because nothing heavy is loaded."""

import subprocess
import sys

import pytest
import typer

from shoalfs import __main__ as entry
from shoalfs.fs.cli import cluster
from shoalfs.transport import errors


def shoal(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "shoalfs", *arguments], capture_output=True, text=True, check=False, **kwargs
    )


@pytest.fixture
def command(monkeypatch):
    """A command that raises what it is given, in the real frame."""
    monkeypatch.setattr(entry, "set_up_logging", lambda level: None)
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    raised = []

    @app.command()
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(entry, "app", app)

    def run(error):
        raised[:] = [error]
        return entry.main(["fail"])

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UserError("what: where: what to do"), 2, "shoal: what: where: what to do"),
        (errors.ShoalError("what: where: what to do"), 1, "shoal: what: where: what to do"),
        (errors.NotAllowed("node 9 is no member"), 1, "shoal: node 9 is no member"),
        (errors.PosixError(2), 1, "shoal: No such file or directory"),
        (PermissionError(13, "Permission denied", "/x"), 1, "shoal: Permission denied: /x"),
        (
            errors.PeerUnreachable("tcp:a:1: refused"),
            1,
            "shoal: tcp:a:1: refused: `shoal raft status` shows which metadata nodes answer: start the others",
        ),
        (
            ExceptionGroup("g", [ExceptionGroup("h", [errors.ShoalError("once")]), errors.ShoalError("once")]),
            1,
            "shoal: once",
        ),
    ],
)
def test_what_is_expected_is_one_line(command, capsys, error, code, line):
    assert command(error) == code
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    "error", [AssertionError("broken"), ExceptionGroup("g", [errors.ShoalError("x"), ValueError("bug")])]
)
def test_a_fault_of_ours_keeps_its_traceback(command, error):
    with pytest.raises(type(error)):
        command(error)


def test_debug_shows_tracebacks(command, monkeypatch):
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    with pytest.raises(errors.UserError):
        command(errors.UserError("x"))


def test_an_interrupted_command(command, capsys):
    assert command(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "shoal: interrupted"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frob"], "shoal: no such command 'frob': shoal: see shoal --help"),
        (["mds"], "shoal: missing command: shoal mds: see shoal mds --help"),
        (["up"], "shoal: missing argument 'MNT': shoal up: see shoal up --help"),
        (["status", "--frob"], "shoal: no such option: --frob: shoal status: see shoal status --help"),
        (["mount", "a", "b", "c"], "shoal: invalid value for MNT: expected [SOURCE] MNT: shoal mount: see"),
        (["status", "--mds", "nonsense"], 'shoal: --mds: expected "unix:/path" or "tcp:host:port", got'),
        (["status", "--state", "/no/such"], "shoal: cluster: /no/such: no cluster was made here: start one"),
        (["down", "--state", "/no/such"], "shoal: state: /no/such: no cluster was made here"),
        (["up", "/no/such/mnt", "--replicas", "9"], "shoal: --replicas 9: expected 1 to 2"),
        (["umount", "/tmp/no/such"], "shoal: umount: /tmp/no/such: nothing is mounted there"),
        (["umount", "/proc"], "shoal: umount: /proc: not a mount of shoalfs"),
        (["info", "/proc/self"], "shoal: /proc/self: not in a mount of shoalfs"),
        (
            ["mds", "run", "--node", "999"],
            "shoal: configuration: command line: mds.node: expected int <= 255",
        ),
        (
            ["--log-level", "loud", "status"],
            "shoal: invalid value for --log-level: expected one of debug, info",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, arguments, line):
    monkeypatch.setattr(entry, "set_up_logging", lambda level: None)
    assert entry.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line)
    assert captured.err.count("\n") == 1


def test_a_missing_mount_point_is_refused_before_a_cluster_is_contacted(tmp_path):
    done = shoal("mount", "tcp:127.0.0.1:1", str(tmp_path / "gone"))
    assert done.returncode == 2
    assert done.stderr == f"shoal: mount point: {tmp_path}/gone: no such directory: create it, or add --mkdir\n"


def test_a_cluster_that_does_not_run_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE_MS", 100)
    monkeypatch.setattr(entry, "set_up_logging", lambda level: None)
    assert entry.main(["status", "--mds", f"unix:{tmp_path}/mds.sock"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"shoal: unix:{tmp_path}/mds.sock: ")


def test_nothing_said_is_help_and_a_usage_error():
    done = shoal()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


def test_version():
    assert shoal("--version").stdout.startswith("shoalfs 0.")


def test_without_assertions_nothing_starts():
    done = subprocess.run(
        [sys.executable, "-O", "-m", "shoalfs", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "shoal: assertions are switched off: python -O: start without -O\n"


def test_a_closed_pipe_is_no_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "shoalfs", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == ""


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from shoalfs.__main__ import main; main(['--help']); "
        "heavy = {'trio', 'pyfuse3', 'lmdb', 'pysyncobj', 'rich', 'pydantic', 'shoalfs.mds.messages'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
