"""What is special about each real carrier: socket files, loopback, certificates, socket options."""

import os
import socket
import ssl
import stat
from pathlib import Path

import pytest
import trio
import trustme

from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import NotAllowed, PeerUnreachable, UserError
from shoalfs.transport.limits import MIB
from shoalfs.transport.link import buffers_of, size_of, unsent_part
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.rdma_setup import Accepted
from shoalfs.transport.socket_link import SocketLink
from shoalfs.transport.tls import TlsPaths

PLAIN = Carriers.standard()


@pytest.fixture
def path(tmp_path_factory):
    return str(tmp_path_factory.mktemp("u") / "socket")


async def linked(carriers, address):
    """Both ends of one connection, and its listener."""
    listener = await carriers.listen(address)
    ends = {}

    async def accept():
        ends["theirs"] = await listener.accept()
        await ends["theirs"].handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        ours = await carriers.dial(listener.address)
        await ours.handshake()
    return ours, ends["theirs"], listener


async def received(link, size):
    data = b""
    view = memoryview(bytearray(65536))
    while len(data) < size:
        count = await link.receive_into(view)
        assert count, "the stream ended"
        data += view[:count]
    return data


# --- buffers ---------------------------------------------------------------------------------------------------------
def test_empty_buffers_are_left_out():
    assert buffers_of(b"") == []
    assert buffers_of([b"", b"a", memoryview(b"")]) == [b"a"]
    assert size_of([b"abc", memoryview(b"de"), memoryview(bytes(8)).cast("Q")]) == 13


@pytest.mark.parametrize("sent", range(8))
def test_what_is_left_after_a_partial_send(sent):
    assert b"".join(unsent_part([b"abc", memoryview(b"de"), b"fg"], sent)) == b"abcdefg"[sent:]


async def test_many_buffers_and_partial_sends(path):
    ours, theirs, listener = await linked(PLAIN, f"unix:{path}")
    parts = [bytes([n % 256]) * (n * 7 % 1000 + 1) for n in range(5000)]  # more than one sendmsg takes
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send():
            assert not ours.send_now(parts)
            await ours.drain()

        assert await received(theirs, size_of(parts)) == b"".join(parts)
    for closing in (ours, theirs, listener):
        closing.close()


# --- unix ------------------------------------------------------------------------------------------------------------
async def test_the_socket_file_is_private_and_removed(path):
    listener = await PLAIN.listen(f"unix:{path}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert listener.address == f"unix:{path}"
    listener.close()
    assert not Path(path).exists()  # noqa: ASYNC240 - a path on a local disk


async def test_a_stale_socket_file_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    listener = await PLAIN.listen(f"unix:{path}")
    listener.close()


async def test_a_live_socket_file_is_not_replaced(path):
    listener = await PLAIN.listen(f"unix:{path}")
    with pytest.raises(UserError, match="another process listens there"):
        await PLAIN.listen(f"unix:{path}")
    link = await PLAIN.dial(f"unix:{path}")
    link.close()
    listener.close()


async def test_a_file_that_is_no_socket_is_left_alone(path):
    Path(path).write_text("precious")  # noqa: ASYNC240
    with pytest.raises(UserError, match="not a socket"):
        await PLAIN.listen(f"unix:{path}")
    assert Path(path).read_text() == "precious"  # noqa: ASYNC240


async def test_closing_leaves_the_socket_file_of_a_successor(path):
    first = await PLAIN.listen(f"unix:{path}")
    os.unlink(path)
    second = await PLAIN.listen(f"unix:{path}")
    first.close()
    (await PLAIN.dial(f"unix:{path}")).close()
    second.close()


async def test_unix_addresses_that_cannot_work(path):
    with pytest.raises(UserError, match="1 to 107 bytes"):
        await PLAIN.listen(f"unix:/{'x' * 107}")
    with pytest.raises(UserError, match="1 to 107 bytes"):
        await PLAIN.dial("unix:")
    with pytest.raises(UserError, match="cannot listen"):
        await PLAIN.listen("unix:/nowhere/at/all")
    with pytest.raises(PeerUnreachable):
        await PLAIN.dial(f"unix:{path}")


# --- tcp -------------------------------------------------------------------------------------------------------------
async def test_the_real_port_is_reported():
    for host in ("127.0.0.1", "[::1]"):
        listener = await PLAIN.listen(f"tcp:{host}:0")
        assert listener.address.startswith(f"tcp:{host}:")
        assert not listener.address.endswith(":0")
        (await PLAIN.dial(listener.address)).close()
        listener.close()


async def test_without_tls_only_loopback():
    for address in ("tcp:0.0.0.0:0", "tcp:[::]:0", "tcp:192.0.2.1:7400"):
        with pytest.raises(UserError, match="ca, cert and key"):
            await PLAIN.listen(address)
        with pytest.raises(UserError, match="ca, cert and key"):
            await PLAIN.dial(address)


@pytest.mark.parametrize("place", ["", "host", "host:", ":1", "host:x", "host:70000", "host:-1"])
async def test_malformed_tcp_addresses(place):
    with pytest.raises(UserError, match="expected tcp:host:port"):
        await PLAIN.dial(f"tcp:{place}")


async def test_a_port_that_is_taken_or_closed():
    listener = await PLAIN.listen("tcp:127.0.0.1:0")
    with pytest.raises(UserError, match="cannot listen"):
        await PLAIN.listen(listener.address)
    listener.close()
    with pytest.raises(PeerUnreachable):
        await PLAIN.dial(listener.address)


async def test_tcp_connections_notice_dead_peers_and_do_not_wait_for_company():
    ours, theirs, listener = await linked(PLAIN, "tcp:127.0.0.1:0")
    for link in (ours, theirs):
        assert isinstance(link, SocketLink | Accepted)
        assert link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert link._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        link.close()
    listener.close()


async def test_an_address_of_no_known_scheme():
    for address in ("ftp:host", "", "tcp"):
        with pytest.raises(UserError):
            await PLAIN.dial(address)
    with pytest.raises(UserError, match="memory:"):
        await Carriers(MemoryFabric()).listen("unix:/x")


async def test_memory_names_are_taken_once():
    carriers = Carriers(MemoryFabric())
    listener = await carriers.listen("memory:a")
    with pytest.raises(UserError):
        await carriers.listen("memory:a")
    listener.close()
    with pytest.raises(PeerUnreachable):
        await carriers.dial("memory:a")


# --- tls -------------------------------------------------------------------------------------------------------------
def issue(folder, name, authority, *hosts):
    """PEM files of a certificate for ``hosts``."""
    certificate = authority.issue_cert(*hosts)
    paths = TlsPaths(*(str(folder / f"{name}-{part}.pem") for part in ("ca", "cert", "key")))
    authority.cert_pem.write_to_path(paths.ca)
    certificate.private_key_pem.write_to_path(paths.key)
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(paths.cert, append=True)
    return paths


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    ours, others = trustme.CA(), trustme.CA()
    good = issue(folder, "good", ours, "127.0.0.1")
    elsewhere = issue(folder, "elsewhere", ours, "192.0.2.7")
    stranger = issue(folder, "stranger", others, "127.0.0.1")
    return {
        "good": good,
        "elsewhere": elsewhere,
        "stranger": TlsPaths(good.ca, stranger.cert, stranger.key),  # trusts us; we do not trust it
        "distrustful": TlsPaths(stranger.ca, good.cert, good.key),  # does not trust us
    }


async def first_bytes(server, client):
    """What each side meets when they shake hands and exchange bytes: None if all is well. ``client`` is its files,
    or its carriers."""
    met = {}
    listener = await Carriers.standard(server).listen("tcp:127.0.0.1:0")

    async def one_side(name, opening):
        link = await opening
        try:
            await link.handshake()
            link.send_now([b"x" * 100])
            count = await link.receive_into(memoryview(bytearray(1000)))
            met[name] = None if count == 100 else PeerUnreachable(f"{count} bytes of something else")
        except (NotAllowed, PeerUnreachable) as error:
            met[name] = error
        finally:
            link.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_side, "server", listener.accept())
            carriers = client if isinstance(client, Carriers) else Carriers.standard(client)
            nursery.start_soon(one_side, "client", carriers.dial(listener.address))
    listener.close()
    return met


async def test_both_certificates_are_good(certificates):
    met = await first_bytes(certificates["good"], certificates["good"])
    assert met == {"server": None, "client": None}


async def test_a_client_of_another_authority(certificates):
    met = await first_bytes(certificates["good"], certificates["stranger"])
    assert isinstance(met["server"], NotAllowed)
    assert isinstance(met["client"], NotAllowed | PeerUnreachable)


async def test_a_server_of_another_authority(certificates):
    met = await first_bytes(certificates["good"], certificates["distrustful"])
    assert isinstance(met["client"], NotAllowed)
    assert met["server"] is not None


async def test_a_server_with_a_certificate_for_another_host(certificates):
    met = await first_bytes(certificates["elsewhere"], certificates["good"])
    assert isinstance(met["client"], NotAllowed)
    assert "192.0.2.7" in str(met["client"]) or "mismatch" in str(met["client"])


async def test_a_client_without_a_certificate(certificates, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_cert_chain", lambda *_: None)
        client = Carriers.standard(certificates["good"])
    met = await first_bytes(certificates["good"], client)
    assert isinstance(met["server"], NotAllowed)


async def test_a_client_that_speaks_no_tls(certificates):
    met = await first_bytes(certificates["good"], PLAIN)
    assert isinstance(met["server"], NotAllowed)


async def test_only_tls_1_3(certificates):
    listener = await Carriers.standard(certificates["good"]).listen("tcp:127.0.0.1:0")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(certificates["good"].ca)
    old.load_cert_chain(certificates["good"].cert, certificates["good"].key)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = listener.address.removeprefix("tcp:").split(":")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def refuse():
            link = await listener.accept()
            with pytest.raises(NotAllowed):
                await link.handshake()
            link.close()

        stream = await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=old)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
    listener.close()


async def test_large_data_through_tls(certificates):
    ours, theirs, listener = await linked(Carriers.standard(certificates["good"]), "tcp:127.0.0.1:0")
    parts = [os.urandom(3 * MIB), b"small", os.urandom(1 * MIB)]
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send():
            assert not ours.send_now(parts)
            await ours.drain()

        assert await received(theirs, size_of(parts)) == b"".join(parts)
    ours.close()
    assert await theirs.receive_into(memoryview(bytearray(10))) == 0
    theirs.close()
    listener.close()


def test_wrong_tls_files(certificates, tmp_path):
    good = certificates["good"]
    with pytest.raises(UserError, match="cannot read the TLS key"):
        Carriers.standard(TlsPaths(good.ca, good.cert, str(tmp_path / "none")))
    with pytest.raises(UserError, match="wrong TLS files"):
        Carriers.standard(TlsPaths(good.ca, good.cert, good.cert))
