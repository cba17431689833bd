"""A chunk that goes from one target to the next: who sends to whom, and what becomes of it when one of them fails.

The sender gives the chunk, and the names of all that are left, to the first that takes it; that one stores it and is
the sender to the others. One that cannot be reached is left out, and the next one is asked instead. So a chain that
is broken anywhere still reaches everybody behind the break, and each target is answered for by itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from shoalfs.chunkserver.messages import ChainLink, PutChain
from shoalfs.transport.errors import ChunkCorrupt, ProtocolViolation, ShoalError, UnknownMethod, from_wire, wire_code
from shoalfs.transport.ids import TargetId

T = TypeVar("T")
_PATH_CODES = range(1000, 2000)  # of the transport: they say nothing about the target


class Passed(NamedTuple):
    """``links``: one for each target, in their order. ``asked``: those whom this sender itself sent the chunk to."""

    links: tuple[ChainLink, ...]
    asked: frozenset[TargetId]


async def pass_on(
    targets: Sequence[tuple[TargetId, T]],
    send: Callable[[T, Sequence[TargetId]], Awaitable[Sequence[ChainLink]]],
) -> Passed:
    """Send a chunk to all ``targets`` along a chain. ``send`` gives it to one, with the targets that it is for, that
    one first; it returns what became of each, or raises a ShoalError if it got no answer. Raises nothing that it
    raises. Cancelled: some targets may have the chunk.
    """
    links: list[ChainLink] = []
    for at, (target, to) in enumerate(targets):
        try:
            links += await send(to, [target for target, _ in targets[at:]])
            break
        except ShoalError as error:
            links.append(failed(target, error))
    return Passed(tuple(links), frozenset(target for target, _ in targets[: at + 1]) if targets else frozenset())


def failed(target: TargetId, error: ShoalError) -> ChainLink:
    return ChainLink(target, None, wire_code(error), str(error))


def error_of(link: ChainLink) -> ShoalError:
    """Why there is no receipt."""
    return from_wire(link.code, link.text)


def worth_a_direct_try(link: ChainLink, asked: frozenset[TargetId]) -> bool:
    """The chunk did not get to the target, or not whole, and another way to it may be better than the chain: nobody
    has asked the target itself, or it does not know chains."""
    if link.receipt is not None:
        return False
    if link.target in asked:
        return link.code == UnknownMethod.code
    return link.code in _PATH_CODES or link.code == ChunkCorrupt.code


def checked(request: PutChain, links: Sequence[ChainLink]) -> Sequence[ChainLink]:
    """Raises ProtocolViolation unless there is an answer for each target, and receipts are for what was sent."""
    if [link.target for link in links] != list(request.targets):
        raise ProtocolViolation("an answer about other targets than the chunk was for")
    for link in links:
        receipt = link.receipt
        if receipt is None:
            continue
        stated = (receipt.chunk, receipt.target, receipt.chunk_hash)
        if stated != (request.chunk, link.target, request.chunk_hash) or receipt.durable < request.durable:
            raise ProtocolViolation(f"target {link.target} sent a receipt for something else")
    return links
