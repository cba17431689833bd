"""A planted mistake is looked for in one history after the other, until a checker finds it."""

from collections.abc import Callable
from typing import Any

import pytest

from sim.broken import Broken


def hunt(name: str, history: Callable[[int], Any], seeds: int, first: int = 0) -> None:
    """Fail unless one of so many histories ends in Broken. Any other error of a history is passed over.

    ``first``: the one that found it when somebody last looked. It is tried before all others, so it decides how long
    this takes, and nothing else.
    """
    crashes = 0
    for seed in (first, *(seed for seed in range(seeds) if seed != first)):
        try:
            history(seed)
        except Broken as error:
            print(f"{name}: found by history {seed}: {str(error)[:120]}")
            return
        except Exception:
            crashes += 1
    pytest.fail(f"{name} went unnoticed in {seeds} histories; {crashes} of them ended by themselves")
