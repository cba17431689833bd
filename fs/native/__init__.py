"""The compiled part: what pyfuse3 lacks. ``shim`` is the extension, or None where it was not built.

It has to be loaded before pyfuse3, and globally, so that pyfuse3's calls of libfuse go through it: `fs/fuse_binding.py`
sees to the order. ``SHOAL_WITHOUT_NATIVE=1`` leaves it out, for the tests of what a mount does then.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from shoalfs.fs.listings import Shown

WITHOUT = "SHOAL_WITHOUT_NATIVE"


class Shim(Protocol):
    """The functions of ``fuse_shim.c``, ``opens.c``, ``names.c``, ``bare.c`` and
    ``entries.c``; their docstrings are there."""

    def install(
        self,
        take: Callable[[int, int, int, int, int, int, bytes], bool],
        opcodes: bytes,
        flags: int,
        max_background: int,
        /,
    ) -> None: ...

    def detach(self) -> None: ...

    def reply(self, unique: int, error: int, body: bytes, /) -> bool: ...

    def current(self) -> tuple[int, int, int, bytes] | None: ...

    def granted(self) -> int | None: ...

    def serve(self, limit: int, /) -> int: ...

    def idle(self, events: int, wake: int, timeout_s: float, /) -> None: ...

    def offer(self, node: int, keep: bool, data: bytes | memoryview | None = None, /) -> bool: ...

    def read_through(self) -> list[int]: ...

    def withdraw(self, node: int, /) -> int: ...

    def withdraw_all(self) -> list[tuple[int, int]]: ...

    def any_open(self) -> bool: ...

    def believe_until(self, boottime_s: float, /) -> None: ...

    def opened(self) -> int: ...

    def refuse_opens(self) -> None: ...

    def offer_name(self, parent: int, name: bytes, attributes: bytes, /) -> bool: ...

    def withdraw_name(self, parent: int, name: bytes, /) -> None: ...

    def withdraw_names(self) -> None: ...

    def keep_names(self, entry_s: float, attr_s: float, /) -> None: ...

    def looked_up(self) -> int: ...

    def offer_bare(self, nodes: Sequence[int], /) -> None: ...

    def withdraw_bare(self, node: int, /) -> None: ...

    def withdraw_all_bare(self) -> None: ...

    def found_bare(self) -> int: ...

    def pack_entries(self, entries: "list[Shown]", entry_s: float, attr_s: float, /) -> bytes: ...


def _load() -> Shim | None:
    if os.environ.get(WITHOUT):
        return None
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        return cast("Shim", importlib.import_module("shoalfs.fs.native._fuse_shim"))
    except ImportError:
        return None
    finally:
        sys.setdlopenflags(flags)


shim = _load()
