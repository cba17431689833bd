"""`shoal fsck` while the metadata service gets another leader: the check that it was reading is gone."""

import errno
from collections import Counter

import pytest

from harness.damaged_metadata import World
from harness.mending import Desk
from shoalfs.fs.cli import fsck
from shoalfs.fs.cli.repair import carry_out
from shoalfs.mds import messages as m
from shoalfs.transport.errors import PosixError, UserError


class Unsteady(Desk):
    """Forgets what it was asked for the first ``times`` that somebody reads it."""

    def __init__(self, md, times, method=m.READ_CHECK):
        super().__init__(md)
        self.times = times
        self.method = method
        self.calls = Counter()

    async def _leader(self, method, request, attempt_ms=0):
        self.calls[method.number] += 1
        if method is self.method and self.times:
            self.times -= 1
            raise PosixError(errno.ESTALE, "there is no inspection 1 here: begin again")
        return await super()._leader(method, request, attempt_ms)


async def test_it_begins_again():
    desk = Unsteady(World(), 2)
    report = await fsck.check(desk.operator, deep=False, grace_ms=0)
    assert desk.calls[m.OPEN_CHECK.number] == 3
    assert (report.findings, report.inodes) == ([], 8)


async def test_not_for_ever():
    desk = Unsteady(World(), 99)
    with pytest.raises(UserError, match="3 leaders") as told:
        await fsck.check(desk.operator, deep=False, grace_ms=0)
    assert "\n" not in str(told.value)
    assert desk.calls[m.OPEN_CHECK.number] == 3


async def test_other_errors_are_told():
    class Failing(Unsteady):
        async def _leader(self, method, request, attempt_ms=0):
            if method is m.READ_CHECK:
                raise PosixError(errno.EIO, "the process that checks the metadata has ended: see the log")
            return await super()._leader(method, request, attempt_ms)

    with pytest.raises(PosixError, match="has ended"):
        await fsck.check(Failing(World(), 0).operator, deep=False, grace_ms=0)


@pytest.mark.parametrize("method", [m.READ_CHECK, m.READ_PLANS, m.READ_PATHS])
async def test_a_repair_goes_on_with_the_next_leader(method):
    world = World()
    world.inode(world.f, nlink=7)
    desk = Unsteady(world, 1, method)
    assert (await carry_out(desk.operator, apply=True)).is_clean
    assert world.findings() == []
