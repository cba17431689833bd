"""Copies that go along a chain: who is sent what, and that a broken chain costs no copies."""

import random

import pytest

from shoalfs.mds import messages as m
from shoalfs.transport.errors import (
    ChunkCorrupt,
    DeadlineExceeded,
    Overloaded,
    PeerUnreachable,
    ShoalError,
    TargetDown,
    TargetFull,
    UnknownMethod,
)
from shoalfs.transport.ids import TargetId, chunk_pg
from unit.fs.world import CHUNK, World

DATA = random.Random(1).randbytes(CHUNK)


def replicated(**options: int) -> World:
    return World(**{"targets": 3, "replicas": 3, "min_ack": 2} | options)


async def write(world: World, *, durable: bool = False, **options) -> tuple:
    """A file of one chunk, written along chains: its mount and who should have it, the leader first."""
    mount = world.mount(replication="chain", **options)
    ino = world.service.create().ino
    file = await world.opened(mount, ino)
    await file.write(0, DATA)
    await file.flush(durable=durable)
    assert world.service.read_back(ino) == DATA
    (extent,) = world.service.files[ino].extents
    (group,) = [g for g in world.service.map.groups if g.id == chunk_pg(extent.chunk)]
    return mount, group, extent.chunk


def has_it(world: World, chunk) -> set[TargetId]:
    return {target for target, chunks in world.servers.chunks.items() if chunk in chunks}


@pytest.mark.parametrize("durable", [False, True])
async def test_a_chunk_is_sent_once_and_passed_on(autojump_clock, durable) -> None:
    world = replicated()
    mount, group, chunk = await write(world, durable=durable)
    assert world.servers.chains == [group.targets]
    assert [put[:2] for put in world.servers.puts] == [(target, chunk) for target in group.targets]
    assert mount.counters["chains"] == 1
    assert not mount.counters["chain_copies_direct"]
    if durable:
        assert all(chunk in world.servers.durable[target] for target in group.targets)


async def test_fragments_are_not_passed_on(autojump_clock) -> None:
    world = World(targets=4, replicas=4, min_ack=3, data=2)
    await_file = world.mount(replication="chain")
    file = await world.opened(await_file, world.service.create().ino)
    await file.write(0, DATA)
    await file.flush(durable=False)
    assert not world.servers.chains
    assert len(world.servers.puts) == 4


@pytest.mark.parametrize("error", [PeerUnreachable, Overloaded, ChunkCorrupt, UnknownMethod])
async def test_what_does_not_get_past_a_server_is_sent_directly(autojump_clock, error) -> None:
    world = replicated()
    world.servers.on_forward = lambda sender, target: error() if sender != target else None
    mount, group, chunk = await write(world)
    assert world.servers.chains == [group.targets]
    assert has_it(world, chunk) == set(group.targets)
    assert mount.counters["chain_copies_direct"] == 2
    assert not mount.counters["puts_failed"]


async def test_a_server_that_knows_no_chains_is_sent_its_copy_directly(autojump_clock) -> None:
    world = replicated()
    world.servers.on_forward = lambda sender, target: UnknownMethod() if sender == target else None
    _, group, chunk = await write(world)
    assert has_it(world, chunk) == set(group.targets)


async def test_a_dead_head_is_left_out_and_comes_last_the_next_time(autojump_clock) -> None:
    world = replicated()
    dead: list[TargetId] = []

    def fail(target, chunk) -> ShoalError | None:
        dead[:] = dead or [target]
        return PeerUnreachable() if target == dead[0] else None

    world.servers.on_put = fail
    mount, group, chunk = await write(world)
    assert has_it(world, chunk) == set(group.targets) - {dead[0]}
    assert world.servers.chains == [group.targets, group.targets[1:]]
    assert mount.counters["puts_failed"] == 1
    world.servers.chains.clear()
    file = await world.opened(mount, world.service.create().ino)
    await file.write(0, DATA)
    await file.flush(durable=False)
    ((*_, last),) = world.servers.chains
    assert last == dead[0]


@pytest.mark.parametrize("error", [TargetFull, TargetDown])
async def test_what_a_target_says_itself_is_not_asked_again(autojump_clock, error) -> None:
    world = replicated()
    middle: list[TargetId] = []

    def fail(target, chunk) -> ShoalError | None:
        if world.servers.chains and target == world.servers.chains[-1][1]:
            middle.append(target)
            return error()
        return None

    world.servers.on_put = fail
    mount, group, chunk = await write(world)
    assert len(middle) == 1
    assert has_it(world, chunk) == set(group.targets) - set(middle)
    assert not mount.counters["chain_copies_direct"]


async def test_who_hangs_is_asked_again_only_if_its_copy_is_needed(autojump_clock) -> None:
    for min_ack, direct in ((2, 0), (3, 1)):
        world = replicated(min_ack=min_ack)
        world.servers.on_forward = lambda sender, target, world=world: (
            DeadlineExceeded() if target == world.servers.chains[-1][2] else None
        )
        mount, _, chunk = await write(world)
        assert mount.counters["chain_copies_direct"] == direct
        assert len(has_it(world, chunk)) == 2 + direct


async def test_a_chain_that_stores_too_little_is_followed_by_another_group(autojump_clock) -> None:
    world = replicated(targets=5)
    first: list[TargetId] = []

    def fail(target, chunk) -> ShoalError | None:
        first[:] = first or list(world.servers.chains[0][:2])
        return TargetDown() if target in first else None

    world.servers.on_put = fail
    _, group, chunk = await write(world)
    assert len(world.servers.chains) == 2
    assert len(has_it(world, chunk)) >= 2
    assert isinstance(group, m.PlacementGroup)
