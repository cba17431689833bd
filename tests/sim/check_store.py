"""The namespace check on a member's store: every invariant between its rows."""

import io

from shoalfs.mds.check import check
from shoalfs.mds.memory import MemoryStore
from shoalfs.transport.ids import NodeId
from sim.broken import Broken


def check_store(node: NodeId, store: MemoryStore) -> None:
    with store.read() as txn:
        for page in check(txn, io.BytesIO):
            if page is not None and page.findings:
                raise Broken(f"node {node}: {page.findings}")
