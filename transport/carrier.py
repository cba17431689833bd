"""Addresses: which carrier serves which scheme.

"unix:/path/to.sock", "tcp:127.0.0.1:7400", "tcp:[::1]:7400"; "memory:name" in tests. In tests:
``Carriers(MemoryFabric())``.
"""

from shoalfs.transport.errors import UserError
from shoalfs.transport.link import Carrier, Link, Listener
from shoalfs.transport.rdma_setup import Choice, Transport
from shoalfs.transport.tcp import TcpCarrier
from shoalfs.transport.tls import TlsPaths
from shoalfs.transport.unix import UnixCarrier


class Carriers:
    """The carriers that a process may use, by their schemes."""

    def __init__(self, *carriers: Carrier) -> None:
        self._by_scheme = {carrier.scheme: carrier for carrier in carriers}

    @classmethod
    def standard(cls, tls: TlsPaths | None = None, transport: str = "tcp") -> "Carriers":
        """What a real process uses. ``transport`` is "auto", "rdma" or "tcp". Raises UserError if a TLS file is
        missing or wrong."""
        return cls(UnixCarrier(), TcpCarrier(tls, Choice(Transport(transport))))

    async def dial(self, address: str) -> Link:
        """Raises PeerUnreachable, NotAllowed, or UserError if the address can never work."""
        carrier, place = self._find(address)
        return await carrier.dial(place)

    async def listen(self, address: str) -> Listener:
        """Raises UserError if it cannot listen there."""
        carrier, place = self._find(address)
        return await carrier.listen(place)

    def _find(self, address: str) -> tuple[Carrier, str]:
        scheme, _, place = address.partition(":")
        carrier = self._by_scheme.get(scheme)
        if carrier is None:
            known = ", ".join(f"{known}:" for known in sorted(self._by_scheme))
            raise UserError(f"address {address!r} must begin with one of {known}")
        return carrier, place
