"""Several awaitables at a time, with errors that are values until all have ended."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from shoalfs.transport.errors import ShoalError

T = TypeVar("T")


async def settle_all(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | ShoalError]:
    """Run all ``calls`` at the same time and return, in their order, what each returned or the ShoalError it
    raised.

    One that fails does not disturb the others. The number of calls is the caller's to bound. Cancelled: all
    are.
    """
    results: dict[int, T | ShoalError] = {}

    async def run(index: int, call: Callable[[], Awaitable[T]]) -> None:
        try:
            results[index] = await call()
        except ShoalError as error:
            results[index] = error

    if len(calls) == 1:
        await run(0, calls[0])
    elif calls:
        async with trio.open_nursery() as nursery:
            for index, call in enumerate(calls):
                nursery.start_soon(run, index, call)
    return [results[index] for index in range(len(calls))]


async def all_of(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """As :func:`settle_all`; when all have ended, raises the first error in their order, if there is one."""
    results: list[T] = []
    for result in await settle_all(calls):
        if isinstance(result, ShoalError):
            raise result
        results.append(result)
    return results
