"""A new node's way into a group: asked twice it is one member, and a crash between any two steps is gone over."""

from contextlib import asynccontextmanager

import pytest
import trio

from harness.metadata import contents
from shoalfs.mds import install, joining
from shoalfs.mds import messages as m
from shoalfs.mds.client import open_session
from shoalfs.mds.group_messages import GET_GROUP, JOIN, LEAVE, GetGroup, Join, Leave
from shoalfs.mds.journal import read_owner
from shoalfs.mds.server import MdsOptions, run
from shoalfs.mds.store import LmdbStore
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import BadMessage, NotAllowed, ShoalError, UserError, WrongCluster
from shoalfs.transport.ids import ROOT_INODE
from shoalfs.transport.memory import MemoryFabric
from shoalfs.transport.network import open_network
from shoalfs.transport.session import Hello

FIRST = "memory:first"
NEW = "memory:new"


class Crash(Exception):
    """The machine stops here."""


@asynccontextmanager
async def one_node(path):
    carriers = Carriers(MemoryFabric())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(run, MdsOptions(str(path / "first"), FIRST), carriers)
            yield carriers, nursery
            nursery.cancel_scope.cancel()


async def ask(carriers, method, request, role=m.ADMIN, address=FIRST):
    async with open_network(carriers, Hello(role=role, name="test")) as network:
        try:
            return (await network.call(address, method, request)).body
        except ShoalError as error:
            failure = error  # not from in there: it would come in a group
    raise failure


async def members_when(carriers, condition, address=FIRST):
    while not condition(status := await ask(carriers, GET_GROUP, GetGroup(), address=address)):
        await trio.sleep(0.02)
    return status.members


async def write(carriers, count, prefix):
    async with (
        open_network(carriers, Hello(role=m.CLIENT, name="test")) as network,
        open_session(network, [FIRST], "test") as session,
    ):
        for number in range(count):
            request = m.Create(m.ROOT_CREDENTIALS, ROOT_INODE, b"%s%d" % (prefix, number), 0o644, exclusive=True)
            await session.mutate(m.Op.CREATE, request, m.Created)


async def test_a_node_joins_votes_and_has_everything(tmp_path):
    async with one_node(tmp_path) as (carriers, nursery):
        await write(carriers, 20, b"before")
        await joining.join(tmp_path / "new", [FIRST], NEW, b"", carriers)
        members = await members_when(carriers, lambda status: len(status.members.members) == 2)
        assert members.voters == {1}, "nobody votes who has not caught up"
        await nursery.start(run, MdsOptions(str(tmp_path / "new"), NEW), carriers)
        members = await members_when(carriers, lambda status: status.members.voters == {1, 2})
        assert [member.peer_address for member in members.members] == [FIRST, NEW]
        await write(carriers, 20, b"after")
        status = await ask(carriers, GET_GROUP, GetGroup(), address=NEW)
        assert (status.node, status.leader) == (2, 1)
        await members_when(
            carriers, lambda s: s.applied_index >= status.last_index and s.commit_index == s.last_index, NEW
        )
        # Beginning again, it needs nobody to tell it its number.
        await joining.join(tmp_path / "new", [FIRST], NEW, b"", carriers)
    names = []
    for node in ("first", "new"):
        store = LmdbStore.open(str(tmp_path / node / install.STORE))
        names.append({key for key in contents(store) if key[:1] == b"D"})
        store.close()
    assert len(names[0]) == 40
    assert names[0] == names[1]


@pytest.mark.parametrize("step", ["_log_id", "fetch", "create_journal", "_finish"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_crash_at_any_step_is_gone_over(tmp_path, monkeypatch, step, moment):
    place = joining.catch_up if step == "fetch" else joining
    real = getattr(place, step)

    def crash(*arguments, **options):
        if moment == "after":
            real(*arguments, **options)
        raise Crash

    async def crash_fetch(*arguments, **options):
        if moment == "after":
            await real(*arguments, **options)
        raise Crash

    async with one_node(tmp_path) as (carriers, _):
        with monkeypatch.context() as patch:
            patch.setattr(place, step, crash_fetch if step == "fetch" else crash)
            with pytest.RaisesGroup(Crash, flatten_subgroups=True, allow_unwrapped=True):
                await joining.join(tmp_path / "new", [FIRST], NEW, b"", carriers)
        await joining.join(tmp_path / "new", [FIRST], NEW, b"", carriers)
        members = (await ask(carriers, GET_GROUP, GetGroup())).members
        assert len(members.members) == 2, "it asked twice and is one member"
        owner = read_owner(tmp_path / "new" / install.LOG)
        assert owner is not None
        assert (owner.node, owner.log_id) == (2, members.get(2).log_id)
        install.finish(tmp_path / "new")
        assert {path.name for path in (tmp_path / "new").iterdir()} == {install.STORE, install.LOG, joining.JOINED}


async def test_a_directory_with_a_store_does_not_join(tmp_path):
    (tmp_path / "new" / install.STORE).mkdir(parents=True)
    with pytest.raises(UserError, match="holds a store without a log"):
        await joining.join(tmp_path / "new", [FIRST], NEW, b"", Carriers(MemoryFabric()))


async def test_another_cluster_does_not_take_it_in(tmp_path):
    async with one_node(tmp_path) as (carriers, _):
        with pytest.RaisesGroup(WrongCluster, flatten_subgroups=True, allow_unwrapped=True):
            await joining.join(tmp_path / "new", [FIRST], NEW, b"another cluster!", carriers)


async def test_a_newcomer_has_to_say_who_it_is(tmp_path):
    async with one_node(tmp_path) as (carriers, _):
        for join in (Join(b"short", NEW, NEW), Join(b"i" * 16, "", NEW), Join(b"i" * 16, NEW, "x" * 1000)):
            with pytest.raises(BadMessage):
                await ask(carriers, JOIN, join, role=m.MDS)
        with pytest.raises(NotAllowed, match="known at memory:first already"):
            await ask(carriers, JOIN, Join(b"i" * 16, FIRST, FIRST), role=m.MDS)


async def test_who_may_change_the_group(tmp_path):
    async with one_node(tmp_path) as (carriers, _):
        with pytest.raises(NotAllowed):
            await ask(carriers, JOIN, Join(b"i" * 16, NEW, NEW), role=m.CLIENT)
        for role in (m.CLIENT, m.CHUNKSERVER, m.MDS):
            with pytest.raises(NotAllowed):
                await ask(carriers, LEAVE, Leave(1), role=role)


async def test_nobody_leaves_if_the_rest_could_not_agree(tmp_path, monkeypatch):
    async with one_node(tmp_path) as (carriers, nursery):
        await joining.join(tmp_path / "new", [FIRST], NEW, b"", carriers)
        second = trio.CancelScope()

        async def live(*, task_status):
            with second:
                await run(MdsOptions(str(tmp_path / "new"), NEW), carriers, task_status=task_status)

        await nursery.start(live)
        await members_when(carriers, lambda status: status.members.voters == {1, 2})
        await joining.join(tmp_path / "third", [FIRST], "memory:third", b"", carriers)
        monkeypatch.setattr("shoalfs.mds.raft_node.RaftNode.alive", lambda self: frozenset({1}))
        with pytest.raises(NotAllowed, match="too few would be left that answer: 2 do not"):
            await ask(carriers, LEAVE, Leave(3))
        monkeypatch.undo()
        await ask(carriers, LEAVE, Leave(3))
        await ask(carriers, LEAVE, Leave(2))
        assert (await ask(carriers, GET_GROUP, GetGroup())).members.nodes == (1,)
        second.cancel()
        await write(carriers, 3, b"alone again")
