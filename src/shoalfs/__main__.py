"""The command ``shoal``: puts the commands of all parts together, and turns errors into lines.

The only module that may import everything, and the one place where an error becomes an exit code: 0 ok, 1
failed, 2 usage. What is expected (UserError, ShoalError, StorageFailed, OSError, a wrong option) is one line on stderr,
"shoal: what: where: what to do next". Anything else is a fault of ours and keeps its traceback.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import typer

from shoalfs import __version__
from shoalfs.chunkserver.cli import app as chunkserver_app
from shoalfs.fs.cli import mount_helper, register, register_members
from shoalfs.mds.cli import app as mds_app
from shoalfs.mds.cli import load_dump
from shoalfs.transport import errors
from shoalfs.transport.daemon import Readiness, set_up_logging

_DEBUG: Final = "SHOAL_DEBUG"
_LOG_LEVEL: Final = "SHOAL_LOG_LEVEL"
_LEVELS: Final = ("debug", "info", "warning", "error")
_SERVERS: Final = ("mds", "chunkserver", "mount")  # what they log is of interest without being asked for
_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

_NEXT: Final[dict[type[errors.ShoalError], str]] = {
    errors.PeerUnreachable: "`shoal raft status` shows which metadata nodes answer: start the others",
    errors.DeadlineExceeded: "see with `shoal raft status` what runs, then try again",
    errors.WrongCluster: "check the address, and cluster.id in the configuration",
    errors.VersionMismatch: "install the same release of shoalfs on both sides",
    errors.Overloaded: "try again later",
}
"""What to do about an error that tells no remedy itself."""

app = typer.Typer(name="shoal", rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("load")(load_dump)
app.add_typer(mds_app, name="mds")
app.add_typer(chunkserver_app, name="chunkserver")
register(app)
register_members(mds_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoalfs {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", envvar=_DEBUG, help="Show tracebacks, and log everything.")] = False,
    log_level: Annotated[str | None, typer.Option(envvar=_LOG_LEVEL, help="debug, info, warning or error.")] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A POSIX parallel filesystem for machine-learning clusters. Start with: shoal up MNT"""
    if log_level is not None and log_level not in _LEVELS:
        raise typer.BadParameter(f"expected one of {', '.join(_LEVELS)}", param_hint="--log-level")
    # The environment hands both on to the processes that a command starts.
    if debug:
        os.environ[_DEBUG] = "1"
        log_level = "debug"
    if log_level is not None:
        os.environ[_LOG_LEVEL] = log_level
    set_up_logging(log_level or ("info" if context.invoked_subcommand in _SERVERS else "warning"))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    if not __debug__:
        print("shoal: assertions are switched off: python -O: start without -O", file=sys.stderr)
        return 2
    readiness = Readiness.from_environment()
    try:
        returned = app(
            args=list(arguments) if arguments is not None else None,
            prog_name="shoal",
            standalone_mode=False,
            obj=readiness,
        )
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        returned = _INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away; nothing may be flushed into it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, BaseExceptionGroup) as error:
        answers = [_answer(leaf) for leaf in _leaves(error)]
        told = [answer for answer in answers if answer is not None]
        if len(told) < len(answers) or _DEBUG in os.environ:
            raise
        for line in dict.fromkeys(line for _, line in told):
            print(line, file=sys.stderr)
        readiness.failed(told[0][1])
        return told[0][0]
    if returned == _INTERRUPTED:
        print("shoal: interrupted", file=sys.stderr)
    return returned if isinstance(returned, int) else 0


def mount_shoal() -> int:
    """The command ``mount.shoal``, which mount(8) runs."""
    return mount_helper.mount(sys.argv[1:], main)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups; tasks that ran together fail together."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _answer(error: BaseException) -> tuple[int, str] | None:
    """Exit code and line for an error that was to be expected; None for a fault of ours."""
    if isinstance(error, errors.UserError):
        return error.exit_code, f"shoal: {error}"
    if isinstance(error, errors.StorageFailed):
        return 1, f"shoal: {error}"
    if isinstance(error, errors.ShoalError):
        remedy = _NEXT.get(type(error))
        return 1, f"shoal: {error}: {remedy}" if remedy else f"shoal: {error}"
    if isinstance(error, errors.StorageFailed):
        return 1, f"shoal: {error}"
    if isinstance(error, OSError):
        where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
        return 1, f"shoal: {error.strerror or error}{where}"
    if isinstance(error, typer.TyperException) and hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "shoal"
        message = str(error.format_message()).rstrip(".")
        return 2, f"shoal: {message[:1].lower()}{message[1:]}: {where}: see {where} --help"
    return None


if __name__ == "__main__":
    sys.exit(main())
