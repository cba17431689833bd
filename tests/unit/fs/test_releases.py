"""Releases travel in batches and are never overtaken by an open of the same inode."""

import trio

from shoalfs.fs.releases import Releases
from shoalfs.mds.messages import RELEASE, Release
from shoalfs.transport.errors import PeerUnreachable
from shoalfs.transport.ids import InodeId, SessionId

ONE, TWO = InodeId(11), InodeId(12)


class Recorder:
    """Metadata that writes down what it is told, and can be held up."""

    session = SessionId(3)

    def __init__(self) -> None:
        self.sent: list[tuple[InodeId, ...]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.failures = 0

    async def read(self, method, request):
        assert method is RELEASE
        assert isinstance(request, Release)
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise PeerUnreachable
        self.sent.append(request.inos)


async def test_closes_that_come_together_travel_together(autojump_clock):
    metadata = Recorder()
    releases = Releases(metadata)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(releases.run)
        releases.add(ONE)
        releases.add(TWO)
        await trio.sleep(1)
        assert metadata.sent == [(ONE, TWO)]
        releases.add(ONE)
        await trio.sleep(1)
        assert metadata.sent == [(ONE, TWO), (ONE,)]
        nursery.cancel_scope.cancel()


async def test_an_open_takes_a_waiting_release_back():
    metadata = Recorder()
    releases = Releases(metadata)
    releases.add(ONE)
    await releases.settle(ONE)
    await releases.send_all()
    assert metadata.sent == []


async def test_an_open_waits_for_a_release_that_is_on_its_way():
    metadata = Recorder()
    metadata.gate = trio.Event()
    releases = Releases(metadata)
    releases.add(ONE)
    order = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(releases.send_all)
        await trio.testing.wait_all_tasks_blocked()

        async def reopen():
            await releases.settle(ONE)
            order.append("opened")

        nursery.start_soon(reopen)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        metadata.gate.set()
    assert order == ["opened"]
    assert metadata.sent == [(ONE,)]


async def test_a_failed_release_is_logged_and_the_next_one_is_sent(caplog):
    metadata = Recorder()
    metadata.failures = 1
    releases = Releases(metadata)
    releases.add(ONE)
    await releases.send_all()
    assert "could not be reported" in caplog.text
    releases.add(TWO)
    await releases.send_all()
    assert metadata.sent == [(TWO,)]
