"""TLS 1.3 with certificates on both sides, over any link.

A peer is let in if its certificate is signed by the cluster's authority; the dialler also checks that the name or IP
address it dialled is in the listener's certificate. Built on ssl.SSLObject, so that the bytes are moved by the link
below and received into the caller's buffer.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from shoalfs.transport.errors import NotAllowed, PeerUnreachable, ShoalError, UserError
from shoalfs.transport.frame import Buffer
from shoalfs.transport.limits import KIB
from shoalfs.transport.link import Link, LinkInfo, unsent_part

_PORTION_BYTES: Final = 256 * KIB  # plain bytes that are encrypted before the result is sent; received likewise


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """PEM files: the cluster's authority, this process's certificate (with its chain), and its key."""

    ca: str
    cert: str
    key: str


class TlsContexts:
    """The two sides' settings, read once. Raises UserError if a file is missing or wrong."""

    def __init__(self, paths: TlsPaths) -> None:
        self.dialler = _context(ssl.PROTOCOL_TLS_CLIENT, paths)
        self.acceptor = _context(ssl.PROTOCOL_TLS_SERVER, paths)
        self.acceptor.num_tickets = 0  # sessions are not resumed: connections live long


def _context(protocol: int, paths: TlsPaths) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for what, path in (("authority", paths.ca), ("certificate", paths.cert), ("key", paths.key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UserError(f"cannot read the TLS {what} {path}: {error.strerror}") from error
    try:
        context.load_verify_locations(cafile=paths.ca)
        context.load_cert_chain(paths.cert, paths.key)
    except ssl.SSLError as error:
        raise UserError(f"wrong TLS files {paths.ca}, {paths.cert}, {paths.key}: {error.reason}") from error
    return context


class TlsLink:
    """``server_name`` is what a dialler expects in the peer's certificate; None on the accepting side."""

    def __init__(self, below: Link, context: ssl.SSLContext, server_name: str | None) -> None:
        self._below = below
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server_name is None, server_hostname=server_name)
        self._cipher = memoryview(bytearray(_PORTION_BYTES))
        self._plain: list[Buffer] = []  # taken by send_now, not encrypted yet

    @property
    def name(self) -> str:
        return f"{self._below.name} tls"

    @property
    def info(self) -> LinkInfo:
        return LinkInfo("tls")

    async def handshake(self) -> None:
        await self._below.handshake()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise PeerUnreachable(f"{self.name}: closed during the handshake") from None
            except ssl.SSLError as error:
                await self._flush()  # the alert that tells the peer why
                raise self._refused(error) from error
            else:
                return await self._flush()

    async def receive_into(self, view: memoryview) -> int:
        while True:
            count = self._decrypt(view)
            if count is not None:
                return count
            await self._fill()

    def send_now(self, buffers: Sequence[Buffer]) -> bool:
        assert not self._plain
        self._plain = list(buffers)
        return self._encrypt()

    async def drain(self) -> None:
        await self._below.drain()
        while not self._encrypt():
            await self._below.drain()

    def close(self) -> None:
        self._below.close()

    def _encrypt(self) -> bool:
        """Encrypt and hand down portion by portion, as long as the link below takes it."""
        while self._plain:
            portion_bytes = 0
            while self._plain and portion_bytes < _PORTION_BYTES:
                first = memoryview(self._plain[0]).cast("B")[: _PORTION_BYTES - portion_bytes]
                try:
                    taken = self._tls.write(first)
                except ssl.SSLError as error:  # after the peer has closed
                    raise PeerUnreachable(f"{self.name}: {error.reason or error}") from error
                portion_bytes += taken
                self._plain = unsent_part(self._plain, taken)
            if not self._below.send_now([self._out.read()]):
                return False
        return True

    def _decrypt(self, view: memoryview) -> int | None:
        """Decrypt as much as has come; None if that is nothing, 0 at the end of the stream."""
        count = 0
        try:
            while count < len(view):
                got = cast("int", self._tls.read(len(view) - count, view[count:]))
                if got == 0:
                    break
                count += got
        except ssl.SSLWantReadError:
            return count or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return count
        except ssl.SSLError as error:
            raise self._refused(error) from error
        return count

    async def _fill(self) -> int:
        count = await self._below.receive_into(self._cipher)
        if count:
            self._in.write(self._cipher[:count])
        else:
            self._in.write_eof()
        return count

    async def _flush(self) -> None:
        if self._out.pending and not self._below.send_now([self._out.read()]):
            await self._below.drain()

    def _refused(self, error: ssl.SSLError) -> ShoalError:
        detail = getattr(error, "verify_message", "") or error.reason or str(error)
        return NotAllowed(f"{self.name}: {detail}: both sides need certificates that the other's tls.ca has signed")
