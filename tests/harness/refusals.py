"""Calls that have to fail, and how."""

from collections.abc import Callable
from typing import Any

import pytest


def failing(call: Callable[..., Any], *arguments: object) -> int:
    """The errno that ``call`` fails with; it has to fail."""
    with pytest.raises(OSError) as raised:  # noqa: PT011 - the caller compares the number
        call(*arguments)
    assert raised.value.errno is not None
    return raised.value.errno
