"""What a carrier promises: a link that moves bytes both ways in order, and a listener that yields links.

A carrier knows nothing of frames. Everything that goes wrong with a link is raised as PeerUnreachable, or as
NotAllowed when the peer's certificate is refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.frame import Buffer, Payload
from shoalfs.transport.limits import STALL_TIMEOUT_MS


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """How a link moves bytes, for people. ``carrier`` is "unix", "tcp", "tls", "verbs" or "memory"; ``device`` that of
    verbs; ``reason`` why it is not verbs, empty where they were never a question. ``counters``: of verbs, what went
    through the device."""

    carrier: str
    device: str = ""
    reason: str = ""
    counters: Mapping[str, int] = field(default_factory=dict)


class Link(Protocol):
    """One connection, used by at most one receiving and one sending task."""

    @property
    def name(self) -> str:
        """What it is and whom it leads to, for the log."""
        ...

    @property
    def info(self) -> LinkInfo:
        """How it moves bytes. Settled once the first bytes have come."""
        ...

    async def handshake(self) -> None:
        """What the carrier needs before bytes flow. Called once, before anything else."""
        ...

    async def receive_into(self, view: memoryview) -> int:
        """Wait for bytes and write them to ``view``; how many, 0 at the end of the stream. Cancelled: none lost.

        Lets other tasks run, also if bytes keep coming.
        """
        ...

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        """Take all ``buffers``, none of them empty. True: everything is handed over. False: :meth:`drain` does the
        rest and must have returned before the next ``send_now``; the buffers must stay as they are until then."""
        ...

    async def drain(self) -> None:
        """Send what ``send_now`` left. Raises PeerUnreachable if the peer takes no byte for STALL_TIMEOUT_MS.
        Cancelled: call it again, or close the link."""
        ...

    def close(self) -> None:
        """Close at once. What is not handed over is lost. The other methods must not be waiting or called again."""
        ...


class Listener(Protocol):
    @property
    def address(self) -> str:
        """The address in full, with the port that was really taken."""
        ...

    async def accept(self) -> Link:
        """The next link. Raises OSError if this process or machine is out of descriptors or memory."""
        ...

    def close(self) -> None:
        """Stop listening. Links that were accepted live on."""
        ...


class Carrier(Protocol):
    """One way of moving bytes. ``place`` is what follows the scheme in an address."""

    @property
    def scheme(self) -> str: ...

    async def dial(self, place: str) -> Link:
        """Raises PeerUnreachable, or UserError if the address can never work."""
        ...

    async def listen(self, place: str) -> Listener:
        """Raises UserError if it cannot listen there."""
        ...


def buffers_of(payload: Payload) -> list[Buffer]:
    """The buffers of a payload that are not empty."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return [payload] if len(payload) else []
    return [buffer for buffer in payload if len(buffer)]


def size_of(buffers: Sequence[Buffer]) -> int:
    """How many bytes these buffers hold."""
    return sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers)


def unsent_part(buffers: Sequence[Buffer], sent_bytes: int) -> list[Buffer]:
    """What is left of ``buffers`` when the first ``sent_bytes`` bytes are gone."""
    for index, buffer in enumerate(buffers):
        view = memoryview(buffer).cast("B")
        if sent_bytes < view.nbytes:
            return [view[sent_bytes:], *buffers[index + 1 :]]
        sent_bytes -= view.nbytes
    return []


@contextmanager
def stall_limit(link: Link) -> Iterator[None]:
    """What is awaited inside must not take longer than STALL_TIMEOUT_MS. Raises PeerUnreachable."""
    try:
        with trio.fail_after(STALL_TIMEOUT_MS / 1000):
            yield
    except trio.TooSlowError:
        raise PeerUnreachable(f"{link.name}: no byte moved for {STALL_TIMEOUT_MS} ms") from None
