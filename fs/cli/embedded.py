"""The one-machine cluster of `shoal up` as values: which processes there are, and what each is configured
with. Pure.

Every process gets a configuration file of the ordinary kind, so that a larger cluster is made by copying
these files to more machines and changing the addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoalfs.fs.cli.state import ClusterRecord, StateDir
from shoalfs.transport.config import Address
from shoalfs.transport.errors import UserError

MDS_CHOICES = (1, 3)
NODES_MAX = 16  # chunkservers on one machine; more would only share the same disks
MOUNT = "mount"


@dataclass(frozen=True)
class Daemon:
    """One server: ``arguments`` start it, given its configuration file's path."""

    name: str
    kind: str
    address: str
    tables: Mapping[str, Mapping[str, object]]

    def arguments(self, config_path: str) -> list[str]:
        return [self.kind, "run", "--config", config_path]


def servers(state: StateDir, cluster: ClusterRecord) -> list[Daemon]:
    """All servers, in the order in which they are started. Raises UserError if a socket's path is too
    long."""
    return [_mds(state, cluster, node) for node in range(1, cluster.mds + 1)] + [
        _chunkserver(state, cluster, node) for node in range(1, cluster.nodes + 1)
    ]


def mount_tables(state: StateDir, cluster: ClusterRecord) -> dict[str, dict[str, object]]:
    """The configuration of the mount."""
    return {"cluster": {"id": cluster.cluster_id}, "mount": {"mds": list(peers(state, cluster).values())}}


def check(cluster: ClusterRecord) -> None:
    """Raises UserError unless such a cluster can be made."""
    if cluster.mds not in MDS_CHOICES:
        raise UserError(f"--mds {cluster.mds}: expected 1, or 3 to go on when one fails")
    if not 1 <= cluster.nodes <= NODES_MAX:
        raise UserError(f"--nodes {cluster.nodes}: expected 1 to {NODES_MAX}")
    if not 1 <= cluster.replicas <= cluster.nodes:
        raise UserError(f"--replicas {cluster.replicas}: expected 1 to {cluster.nodes}, the number of nodes")


def _socket(state: StateDir, name: str) -> str:
    try:
        return str(Address.parse(f"unix:{state.at('sock', f'{name}.sock')}"))
    except ValueError as error:
        raise UserError(f"state: {state.path}: {error}: name one with --state") from error


def peers(state: StateDir, cluster: ClusterRecord) -> dict[int, str]:
    """Where each metadata node listens, by its number."""
    return {node: _socket(state, f"mds-{node}") for node in range(1, cluster.mds + 1)}


def _mds(state: StateDir, cluster: ClusterRecord, node: int) -> Daemon:
    name = f"mds-{node}"
    address = _socket(state, name)
    table = {
        "node": node,
        "listen": address,
        "peers": peers(state, cluster),
        "data_dir": state.at("data", name),
        "replicas": cluster.replicas,
    }
    return Daemon(name, "mds", address, {"cluster": {"id": cluster.cluster_id}, "mds": table})


def _chunkserver(state: StateDir, cluster: ClusterRecord, node: int) -> Daemon:
    name = f"chunkserver-{node}"
    address = _socket(state, name)
    table = {
        "name": name,
        "listen": address,
        "targets": [{"path": state.at("data", name), "size": cluster.target_bytes}],
        "mds": list(peers(state, cluster).values()),
    }
    return Daemon(name, "chunkserver", address, {"cluster": {"id": cluster.cluster_id}, "chunkserver": table})
