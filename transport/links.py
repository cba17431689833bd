"""What a server says of the connections that it accepted: who is there, over what, and why. Pure: data only.

A connection is told by its accepting side, which knows both reasons: its own, and that of the dialler from its hello.
"""

from typing import Final

from shoalfs.transport.method import Message, Method


class GetLinks(Message, frozen=True):
    """Which connections are open."""


class LinkStatus(Message, frozen=True):
    """One connection. ``role`` and ``name``: what the peer calls itself. ``carrier``, ``device``, ``reason``,
    ``counters``: see :class:`~shoalfs.transport.link.LinkInfo`; sent and received as the server sees it."""

    role: str
    name: str
    carrier: str
    device: str
    reason: str
    counters: dict[str, int]


class Links(Message, frozen=True):
    """``left_out``: so many more are open than LINKS_TOLD_MAX."""

    links: tuple[LinkStatus, ...]
    left_out: int = 0


LINKS: Final = Method(20, "net.links", GetLinks, Links, roles=frozenset({"admin"}))
