"""Every carrier in turn, and certificates for the one that needs them."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trustme

from harness.echo_server import Place
from harness.verbs import be_patient
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.tls import TlsPaths


@pytest.fixture(scope="session")
def tls_paths(tmp_path_factory: pytest.TempPathFactory) -> TlsPaths:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    return TlsPaths(str(folder / "ca.pem"), str(folder / "cert.pem"), str(folder / "key.pem"))


CARRIERS = ["memory", "unix", "tcp", "tls"]
if "SHOAL_TEST_RDMA" in os.environ:  # an address that a device carries: set in the guest of tests/rdma
    CARRIERS = ["rdma"]


@pytest.fixture(params=CARRIERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nursery: trio.Nursery) -> Place:
    if request.param == "memory":
        return Place(Carriers(MemoryFabric()), "memory:server", nursery)
    if request.param == "unix":
        return Place(Carriers.standard(), f"unix:{tmp_path_factory.mktemp('u')}/s", nursery)
    if request.param == "tcp":
        return Place(Carriers.standard(), "tcp:127.0.0.1:0", nursery)
    if request.param == "rdma":
        be_patient(request.getfixturevalue("monkeypatch"))
        return Place(Carriers.standard(None, "rdma"), "tcp:127.0.0.1:0", nursery)
    paths = request.getfixturevalue("tls_paths")
    return Place(Carriers.standard(paths), "tcp:127.0.0.1:0", nursery)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """Wait for a condition that other tasks bring about."""

    async def wait_until(condition: Callable[[], bool]) -> None:
        with trio.fail_after(30):
            while not condition():
                await trio.sleep(0.002)

    return wait_until
