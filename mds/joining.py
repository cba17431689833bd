"""A new node's way into a group that exists: `shoal mds join`.

It asks any member, is given a number that no node had before, fetches the whole store as a snapshot, and begins a log
under that number. From then on it starts like every other node. It begins as a learner; the leader lets it vote when it
has caught up.

Durable steps, in the node's directory; the same command after a crash goes on where it was:

1. ``joining``: the random id of the log that it is going to have, synced. The group knows the newcomer by it, so asking
   twice does not make two members.
2. The snapshot in ``installing`` (see `mds/install.py`); fetched again after a crash before 4.
3. ``joined``: the number, synced; it counts instead of the configured one.
4. The log, with that number and id. It is a member's directory now; what is left is done at every start.
5. ``joining`` is removed.

The one rule: a directory that holds a log is never joined anew. Its number and its promises are in it.
"""

import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

import trio

from shoalfs.mds import catch_up
from shoalfs.mds.group import LOG_ID_BYTES
from shoalfs.mds.group_messages import JOIN, Join, Joined
from shoalfs.mds.install import INSTALLING, LOG, STORE
from shoalfs.mds.journal import create_journal, read_owner
from shoalfs.mds.journal_files import sync_directory
from shoalfs.mds.leader import Leader
from shoalfs.mds.messages import MDS
from shoalfs.mds.raft_messages import peer_name
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.errors import Overloaded, UserError
from shoalfs.transport.ids import NodeId
from shoalfs.transport.limits import REQUEST_TIMEOUT_MS_DEFAULT, SNAPSHOT_LEASE_MS, SNAPSHOT_RETRY_MS
from shoalfs.transport.network import Network, open_network
from shoalfs.transport.session import Hello

log: Final = logging.getLogger("shoal.mds.joining")

JOINING: Final = "joining"
JOINED: Final = "joined"


async def join(directory: Path, asked: list[str], address: str, cluster_id: bytes, carriers: Carriers) -> None:
    """Make ``directory`` that of a new member of the group that ``asked`` belong to; nothing, if it is one already.

    ``address`` is where the others and clients will reach it; ``cluster_id`` may be empty. Raises UserError,
    ShoalError, and StorageFailed; it can be called again then, as after a cancellation.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    owner = read_owner(directory / LOG)
    if owner is not None:
        log.info("%s is that of node %d already", directory, owner.node)
        await trio.to_thread.run_sync(_finish, directory)
        return
    if (directory / STORE).exists():
        raise UserError(f"mds: {directory}: holds a store without a log: a node joins with an empty directory")
    log_id = await trio.to_thread.run_sync(_log_id, directory)
    async with open_network(carriers, Hello(cluster_id=cluster_id, role=MDS, name="mds-new")) as network:
        leader = Leader(network, asked, REQUEST_TIMEOUT_MS_DEFAULT)
        joined: Joined = (await leader.call(JOIN, Join(log_id, address, address))).body
        giver = leader.address
    log.info("joining cluster %s as node %d", joined.cluster_id.hex(), joined.node)
    await trio.to_thread.run_sync(lambda: shutil.rmtree(directory / INSTALLING, ignore_errors=True))
    hello = Hello(cluster_id=joined.cluster_id, role=MDS, name=peer_name(joined.node))
    async with open_network(carriers, hello) as network:
        await _fetch(network, giver, joined, directory)
    await trio.to_thread.run_sync(_write_synced, directory / JOINED, b"%d" % joined.node)
    await trio.to_thread.run_sync(create_journal, directory / LOG, joined.cluster_id, joined.node, log_id)
    await trio.to_thread.run_sync(_finish, directory)


async def _fetch(network: Network, giver: str, joined: Joined, directory: Path) -> None:
    """Fetch a snapshot, however busy the giver is with those of others. Raises as `catch_up.fetch`."""
    give_up = trio.current_time() + 2 * SNAPSHOT_LEASE_MS / 1000
    while True:
        try:
            await catch_up.fetch(network, giver, joined.node, directory, joined.cluster_id)
        except Overloaded as error:
            if trio.current_time() > give_up:
                raise
            log.info("%s has no room for a snapshot, asking again: %s", giver, error)
            await trio.sleep(SNAPSHOT_RETRY_MS / 1000)
        else:
            return


def _log_id(directory: Path) -> bytes:
    """The id in ``joining``, made if it is not there."""
    path = directory / JOINING
    if path.exists() and len(known := path.read_bytes()) == LOG_ID_BYTES:
        return known
    log_id = secrets.token_bytes(LOG_ID_BYTES)
    _write_synced(path, log_id)
    return log_id


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def joined_number(directory: Path) -> NodeId | None:
    """The number of a node that joined; None if it is one that made the group."""
    path = directory / JOINED
    return NodeId(int(path.read_text())) if path.exists() else None


def _finish(directory: Path) -> None:
    (directory / JOINING).unlink(missing_ok=True)
    sync_directory(directory)
