"""``mount.shoal``: what mount(8) runs for ``mount -t shoal SOURCE TARGET`` and for a line of fstab(5).

    mount.shoal SOURCE TARGET [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]

SOURCE is the addresses of metadata nodes ("tcp:a:7400,tcp:b:7400", "unix:/path"), or the absolute path of a
configuration file. Everything else is `shoal mount -d`; this module only speaks mount(8)'s language: its arguments, and
its exit codes (0 done, 1 wrong use, 32 not mounted).
"""

import getopt
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shoalfs.transport.errors import UserError

_WRONG_USE, _NOT_MOUNTED = 1, 32
_USAGE: Final = "mount.shoal: expected SOURCE TARGET [-sfnv] [-o OPTIONS]: see mount(8)"


@dataclass(frozen=True, slots=True)
class Asked:
    """What mount(8) asks for. ``fake``: only check; ``sloppy``: leave out options that are not known."""

    source: str
    target: str
    options: str = ""
    fake: bool = False
    sloppy: bool = False
    verbose: bool = False


def parse_arguments(arguments: Sequence[str]) -> Asked:
    """Raises UserError."""
    try:
        flags, places = getopt.gnu_getopt(list(arguments), "sfnvo:t:N:")
    except getopt.GetoptError as error:
        raise UserError(f"mount.shoal: {error.msg}: see mount(8)") from None
    if len(places) != 2:
        raise UserError(_USAGE)
    chosen = dict(flags)
    if "-N" in chosen:
        raise UserError("mount.shoal: -N: other mount namespaces are not supported: use nsenter(1)")
    options = ",".join(value for flag, value in flags if flag == "-o")
    return Asked(places[0], places[1], options, "-f" in chosen, "-s" in chosen, "-v" in chosen)


def command(asked: Asked) -> list[str]:
    """The arguments of ``shoal`` that do it. Raises UserError for an unknown option."""
    from shoalfs.fs.cli.mount import known_options, parse_options

    options = known_options(asked.options) if asked.sloppy else asked.options
    parse_options(options)
    words = ["mount", "-d", *(["-o", options] if options else [])]
    if asked.source.startswith("/"):
        return [*words, "--config", asked.source, asked.target]
    return [*words, asked.source, asked.target]


def mount(arguments: Sequence[str], shoal: Callable[[Sequence[str]], int]) -> int:
    """Mount, by ``shoal``, which carries out one command and returns its exit code. Returns mount(8)'s."""
    try:
        asked = parse_arguments(arguments)
        words = command(asked)
    except UserError as error:
        print(f"shoal: {error}", file=sys.stderr)
        return _WRONG_USE
    if asked.verbose:
        print("shoal", *words)
    if asked.fake:
        return 0
    return {0: 0, 2: _WRONG_USE}.get(shoal(words), _NOT_MOUNTED)
