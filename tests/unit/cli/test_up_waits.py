"""Which targets `shoal up` waits for."""

from types import SimpleNamespace

import pytest

from shoalfs.fs.cli import up
from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState


def operator(*states):
    targets = tuple(m.Target(n, bytes(16), f"n{n}", "unix:/x", 1, state, 1) for n, state in enumerate(states, 1))

    async def call(*_):
        return SimpleNamespace(body=m.ClusterMap(b"c" * 16, 1, (), targets, ()))

    return SimpleNamespace(leader=SimpleNamespace(call=call))


@pytest.mark.parametrize("state", [TargetState.UP, TargetState.SYNCING, TargetState.DRAINING, TargetState.OUT])
async def test_what_becomes_up_by_itself_or_never_is_not_waited_for(autojump_clock, state):
    assert await up._count_up(2, operator(TargetState.UP, state)) == 2


async def test_a_target_that_is_down_is_waited_for_and_counted_out(autojump_clock):
    assert await up._count_up(2, operator(TargetState.UP, TargetState.DOWN)) == 1
    assert await up._count_up(2, operator(TargetState.UP)) == 1
