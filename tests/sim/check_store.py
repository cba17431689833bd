"""The namespace check on a member's store: every invariant between its rows."""

from shoalfs.mds.check import check_namespace
from shoalfs.mds.memory import MemoryStore
from shoalfs.mds.messages import CheckNamespace
from shoalfs.transport.ids import InodeId, NodeId
from sim.broken import Broken


def check_store(node: NodeId, store: MemoryStore) -> None:
    with store.read() as txn:
        checked = check_namespace(txn, CheckNamespace(InodeId(0)))
    if checked.findings:
        raise Broken(f"node {node}: {checked.findings}")
