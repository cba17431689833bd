"""The unix carrier: "unix:/path/to.sock". For processes of one machine.

The socket file has mode 0600, so only the same user and root can connect; that stands for the certificates that tcp
asks for.
"""

import os
import socket
import stat
from typing import Final

import trio

from shoalfs.transport import socket_link
from shoalfs.transport.errors import PeerUnreachable, UserError
from shoalfs.transport.limits import LISTEN_BACKLOG
from shoalfs.transport.socket_link import SocketLink, connect, widen_buffers

_PATH_BYTES_MAX: Final = 107  # sun_path of unix(7) without the NUL


class UnixCarrier:
    scheme: Final = "unix"

    async def dial(self, place: str) -> SocketLink:
        _check_path(place)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await connect(sock, place)
        except OSError as error:
            sock.close()
            raise PeerUnreachable(f"unix:{place}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        widen_buffers(sock)
        return SocketLink(sock, f"unix:{place}")

    async def listen(self, place: str) -> "UnixListener":
        _check_path(place)
        await _remove_stale(place)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)  # bind makes the file with this mode: it is never wider, not even briefly
            sock.bind(place)
            sock.listen(LISTEN_BACKLOG)
        except OSError as error:
            sock.close()
            raise UserError(f"cannot listen on unix:{place}: {error.strerror}") from error
        sock.setblocking(False)
        return UnixListener(sock, place)


class UnixListener:
    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        self._path = path
        self._inode = os.stat(path).st_ino
        self._accepted = 0

    @property
    def address(self) -> str:
        return f"unix:{self._path}"

    async def accept(self) -> SocketLink:
        sock, _ = await socket_link.accept(self._sock)
        widen_buffers(sock)
        self._accepted += 1
        return SocketLink(sock, f"unix:{self._path}#{self._accepted}")

    def close(self) -> None:
        """Stop listening and remove the socket file, unless it is another's by now."""
        trio.lowlevel.notify_closing(self._sock)
        self._sock.close()
        try:
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass  # removed with its directory


def _check_path(path: str) -> None:
    if not 0 < len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        raise UserError(f"unix:{path}: a socket's path must have 1 to {_PATH_BYTES_MAX} bytes; use a shorter one")


async def _remove_stale(path: str) -> None:
    """Remove a socket file that a dead process left. Two processes that start at the same moment on the same path may
    both get this far; the later bind wins the name, and the earlier listener hears of nobody. Start one."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise UserError(f"cannot listen on unix:{path}: it exists and is not a socket; remove it or use another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await connect(probe, path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise UserError(f"cannot listen on unix:{path}: {error.strerror}") from error
    raise UserError(f"cannot listen on unix:{path}: another process listens there")
