"""Histories that are made for one guard: what chance meets too seldom, or what is slow and not wrong.

Each raises Broken if the guard is missing, and says nothing otherwise.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import msgspec

from shoalfs.mds import raft_peers
from shoalfs.mds.raft_guard import Outgoing
from shoalfs.mds.raft_leading import Leadership
from shoalfs.mds.raft_members import Members, with_learner, without
from shoalfs.mds.raft_messages import Append, Appended, AskVote, PeerMessage, SendNumber, Vote
from shoalfs.transport.errors import Overloaded
from shoalfs.transport.ids import NodeId
from sim.broken import Broken
from sim.process import Process
from sim.world import World


def _leader(world: World) -> Process:
    world.run(2.0)
    return world.processes[world.promises.leaders[max(world.promises.leaders)]]


def _propose_each(world: World, seconds: float, number: int) -> None:
    """So many entries, evenly, at whoever leads."""
    for n in range(number):
        leader = next((p for p in world.processes.values() if p.works and p.guard.is_leader), None)
        if leader is not None:
            world.propose(leader, b"%d at %.4f" % (n, world.now))
        world.run(seconds / number)


def lease(seed: int, directory: Path, *, restarts: bool = False) -> World:
    """Only one of the two followers hears the leader. The other's candidacy must not make the lease a lie, also
    when the one that helped to renew it starts afresh and knows nothing of that.
    """
    world = World(seed, directory, loss=0.0)

    def step() -> None:
        world.propose(candidate, b"at %.3f" % world.now)
        for process in world.processes.values():
            world.check_read(process)
        world.at(world.now + 0.001, step)

    def restart() -> None:
        voter.stop(power=True)
        voter.start()
        world.at(world.now + world.chance.uniform(0.1, 0.3), restart)

    try:
        leader = _leader(world)
        candidate, voter = (process for process in world.processes.values() if process is not leader)
        world.network.cut = {(leader.node, candidate.node), (candidate.node, leader.node)}
        step()
        if restarts:
            restart()
        world.run(3.0)
    finally:
        world.close()
    return world


def vote_lost(seed: int, directory: Path) -> None:
    """Whoever leads is cut off at once, and the others lose what is not on their disks: they must still know that they
    voted."""
    world = World(seed, directory, loss=0.0)
    world.sync_seconds = lambda: 0.05  # type: ignore[method-assign]
    struck: list[int] = []

    def look() -> None:
        for leader in [p for p in world.processes.values() if p.up and p.guard.is_leader and not struck]:
            struck.append(leader.node)
            world.network.cut = {(a, b) for a in world.nodes for b in world.nodes if leader.node in (a, b)}
            for voter in [p for p in world.processes.values() if p is not leader]:
                voter.batch = None  # nothing of it reached the disk
                voter.stop(power=True)
                voter.start()
        world.at(world.now + 0.002, look)

    try:
        look()
        world.run(4.0)
    finally:
        world.close()


def repeated_vote(seed: int, directory: Path) -> None:
    """Of five, one stands, and only one other hears of it; that one's vote comes three times."""
    world = World(seed, directory, size=5, loss=0.0)
    original = world.send
    stands: list[NodeId] = []

    def send(outgoing: Outgoing) -> None:
        message = outgoing.message
        body = message.body
        if isinstance(body, AskVote) and not body.trial:
            stands.append(message.sender)
            if message.sender == stands[0] and message.receiver != _first_other(world, stands[0]):
                return
        if stands and message.sender == stands[0] and isinstance(body, Append):
            return  # nobody hears that it leads
        original(outgoing)
        if isinstance(body, Vote) and not body.trial and message.receiver == stands[0]:
            original(outgoing)
            original(outgoing)
            world.at(world.now + 0.01, lambda: _cut_off(world, stands[0], _first_other(world, stands[0])))

    world.send = send  # type: ignore[method-assign]
    try:
        world.run(4.0)
    finally:
        world.close()


def _first_other(world: World, node: NodeId) -> NodeId:
    return min(other for other in world.nodes if other != node)


def _cut_off(world: World, *nodes: NodeId) -> None:
    """These hear each other, and nobody else."""
    world.network.cut = {(a, b) for a in world.nodes for b in world.nodes if (a in nodes) != (b in nodes)}


def old_acknowledgement(seed: int, directory: Path) -> None:
    """A leader that nobody hears gets an acknowledgement that was given to another leadership, for other entries."""
    world = World(seed, directory, loss=0.0)
    try:
        leader = _leader(world)
        other = next(p for p in world.processes.values() if p is not leader)
        _propose_each(world, 0.2, 10)
        world.run(0.2)
        _cut_off(world, leader.node)
        before = leader.machine.applied_index
        for n in range(5):
            world.propose(leader, b"unheard %d" % n)
        world.run(0.1)
        late = Appended(leader.guard.term - 1, SendNumber(1), True, leader.journal.last_index)
        message = PeerMessage(other.node, leader.node, late, other.journal.log_id, "")
        leader.receive(msgspec.msgpack.encode(message), b"")
        world.run(0.1)
        if leader.machine.applied_index > before:
            raise Broken(f"node {leader.node} has committed what is on no other disk")
    finally:
        world.close()


def crash_after_installation(seed: int, directory: Path) -> None:
    """A member dies in the moment in which it has installed a snapshot: it must start again."""
    world = World(seed, directory, loss=0.0)
    try:
        leader = _leader(world)
        away = next(p for p in world.processes.values() if p is not leader)
        away.stop(power=True)
        _propose_each(world, 1.0, 60)
        for _ in range(8):
            if away.up:
                away.stop(power=False)
            away.installing = leader.give_snapshot(away.node)
            away.start()  # or the crash is between the steps
            if away.up:
                away.stop(power=False)
                away.start()
            _propose_each(world, 0.1, 5)
        world.run(3.0)
        world.check_healed()
    finally:
        world.close()


def two_changes(seed: int, directory: Path) -> None:
    """A leader that nobody hears is asked to remove the others, one after the other."""
    world = World(seed, directory, size=5, loss=0.0)
    try:
        leader = _leader(world)
        _cut_off(world, leader.node)
        for node in [node for node in world.nodes if node != leader.node]:
            with suppress(Overloaded):
                leader.guard.propose_members(partial(without, node=node), leader.now)
        leader.guard.flush(leader.now)
        leader.settle()
        world.propose(leader, b"alone")
        _propose_each(world, 3.0, 60)
    finally:
        world.close()


def learners(seed: int, directory: Path) -> None:
    """Two learners and the leader are cut off from the other two voters."""
    world = World(seed, directory, loss=0.0)
    with patch.object(Leadership, "due_change", lambda *_: None):
        try:
            leader = _leader(world)
            for n in (4, 5):
                log_id = b"log of node %04d" % n
                leader.guard.propose_members(
                    partial(
                        lambda now, log_id: with_learner(now, log_id.decode(), log_id.decode(), log_id)[0],
                        log_id=log_id,
                    ),
                    leader.now,
                )
                leader.guard.flush(leader.now)
                leader.settle()
                process = world.add(NodeId(n), log_id)
                world.run(0.3)
                process.installing = leader.give_snapshot(process.node)
                process.start()
                world.run(0.5)
            _cut_off(world, leader.node, NodeId(4), NodeId(5))
            _propose_each(world, 3.0, 60)
        finally:
            world.close()


def _with_learner(members: Members, log_id: bytes) -> Members:
    return with_learner(members, log_id.decode(), log_id.decode(), log_id)[0]


def wiped(seed: int, directory: Path) -> None:
    """One of the two that have an acknowledged entry loses its disk, and comes back empty under its number."""
    world = World(seed, directory, loss=0.0)
    try:
        leader = _leader(world)
        lost, other = (p for p in world.processes.values() if p is not leader)
        _propose_each(world, 0.5, 10)
        _cut_off(world, other.node)
        _propose_each(world, 0.3, 20)
        world.gone.add(lost.node)
        lost.stop(power=True)
        shutil.rmtree(lost.directory)
        world.add(lost.node, b"new log of  %04d" % lost.node).start()
        _cut_off(world, leader.node)
        world.run(4.0)
        newest = max(world.acknowledged.values())
        for node in (lost.node, other.node):
            process = world.processes[node]
            if process.up and process.guard.is_leader and process.journal.last_index < newest:
                raise Broken(f"node {node} leads without the acknowledged entry {newest}")
    finally:
        world.close()


def sent_again(seed: int, directory: Path) -> None:
    """On a network that loses nothing, each entry is sent to each follower once."""
    world = World(seed, directory, loss=0.0)
    sent: list[int] = []

    def send(outgoing: Outgoing, original: Callable[[Outgoing], None] = world.send) -> None:
        body = outgoing.message.body
        if isinstance(body, Append):
            sent.append(len(body.entries))
            if sum(size for _, size in body.entries) > raft_peers.APPEND_BYTES_MAX and len(body.entries) > 1:
                raise Broken("a message has more bytes than messages may have")
        original(outgoing)

    try:
        _leader(world)
        world.send = send  # type: ignore[method-assign]
        _propose_each(world, 1.0, 300)
        world.run(1.0)
        if sum(sent) > 2 * 300 * 1.2:
            raise Broken(f"{sum(sent)} entries were sent to two followers, of {300}")
    finally:
        world.close()


def late_refusal(seed: int, directory: Path) -> None:
    """A follower is behind, refuses much, and its refusals come again and late: the leader must not go back."""
    world = World(seed, directory, loss=0.0)
    sent: list[int] = []

    def send(outgoing: Outgoing, original: Callable[[Outgoing], None] = world.send) -> None:
        body = outgoing.message.body
        if isinstance(body, Append):
            sent.append(len(body.entries))
        original(outgoing)
        if isinstance(body, Appended) and not body.matches:
            for delay in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
                world.at(world.now + delay, lambda: original(outgoing))

    try:
        leader = _leader(world)
        follower = next(p for p in world.processes.values() if p is not leader)
        world.network.cut = {(leader.node, follower.node)}
        _propose_each(world, 0.2, 20)
        world.send = send  # type: ignore[method-assign]
        world.network.cut = set()
        _propose_each(world, 1.0, 100)
        world.run(1.0)
        if sum(sent) > (20 + 2 * 100) * 1.3:
            raise Broken(f"{sum(sent)} entries were sent, where 220 are enough")
    finally:
        world.close()


def far_behind(seed: int, directory: Path) -> None:
    """A leader whose followers never got its last 25 entries comes back to a group with others in their place: it is
    brought up to date in a few rounds, not in one for each entry."""
    world = World(seed, directory, loss=0.0)
    rounds = 0

    def send(outgoing: Outgoing, original: Callable[[Outgoing], None] = world.send) -> None:
        nonlocal rounds
        body = outgoing.message.body
        rounds += isinstance(body, Appended) and not body.matches
        original(outgoing)

    try:
        old = _leader(world)
        world.network.cut = {(a, b) for a in world.nodes for b in world.nodes if old.node in (a, b)}
        for n in range(25):
            world.propose(old, b"void %d" % n)
        world.run(2.5)
        world.send = send  # type: ignore[method-assign]
        _propose_each(world, 0.2, 25)
        # Whoever leads next knows of no log but its own.
        leader = next(p for p in world.processes.values() if p is not old and p.guard.is_leader)
        leader.guard.hand_over(min(set(world.nodes) - {old.node, leader.node}), leader.now)
        world.run(1.0)
        world.network.cut = set()
        world.run(2.0)
        if rounds > 8:
            raise Broken(f"{rounds} refusals before the logs met")
    finally:
        world.close()


def large_entries(seed: int, directory: Path) -> None:
    """What waits for a follower is more than one message may carry."""
    world = World(seed, directory, loss=0.0)
    limit = 4_000

    def send(outgoing: Outgoing, original: Callable[[Outgoing], None] = world.send) -> None:
        body = outgoing.message.body
        if isinstance(body, Append) and len(body.entries) > 1 and sum(size for _, size in body.entries) > limit:
            raise Broken(f"a message carries {sum(size for _, size in body.entries)} bytes")
        original(outgoing)

    before = raft_peers.APPEND_BYTES_MAX
    raft_peers.APPEND_BYTES_MAX = limit  # type: ignore[misc]
    try:
        leader = _leader(world)
        world.send = send  # type: ignore[method-assign]
        follower = next(p for p in world.processes.values() if p is not leader)
        world.network.cut = {(leader.node, follower.node)}
        for n in range(20):
            world.propose(leader, b"%d" % n + bytes(1_000))
        world.run(0.3)
        world.network.cut = set()
        world.run(1.0)
    finally:
        raft_peers.APPEND_BYTES_MAX = before  # type: ignore[misc]
        world.close()


def cut_off_for_long(seed: int, directory: Path) -> None:
    """A member that nobody heard for three seconds comes back: nobody loses leadership over it."""
    world = World(seed, directory, loss=0.0)
    try:
        leader = _leader(world)
        term = leader.guard.term
        lonely = next(p for p in world.processes.values() if p is not leader)
        world.network.cut = {(a, b) for a in world.nodes for b in world.nodes if lonely.node in (a, b)}
        _propose_each(world, 3.0, 30)
        world.network.cut = set()
        _propose_each(world, 2.0, 20)
        if not leader.guard.is_leader or leader.guard.term != term:
            raise Broken(f"node {lonely.node} was cut off, and ended the leadership of node {leader.node}")
    finally:
        world.close()


def snapshot_over_acknowledged(seed: int, directory: Path) -> None:
    """A snapshot waits while its node gets all entries, and acknowledges them, from the log."""
    world = World(seed, directory, loss=0.0)
    try:
        leader = _leader(world)
        _propose_each(world, 0.3, 20)
        one, other = (p for p in world.processes.values() if p is not leader)
        image = one.machine.image(durable=False)
        other.stop(power=False)
        _propose_each(world, 0.3, 20)  # only on the leader and on this one
        one.stop(power=True)
        leader.stop(power=True)
        world.retire(leader.node)
        one.installing = image
        one.start()
        other.start()
        world.run(4.0)
        applied = {command for _, _, command in world.promises.history.values()}
        reached = max(p.machine.applied_index for p in (one, other))
        lost = [c for c, index in world.acknowledged.items() if index > reached or c not in applied]
        if lost:
            raise Broken(f"acknowledged and lost: {lost[:5]}")
    finally:
        world.close()
