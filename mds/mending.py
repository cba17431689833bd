"""How each kind of finding is repaired: from a finding and the store to the rows that are to be changed. Pure.

The rules, in the order of their weight:

1. Bytes of files are never given up for tidiness. What contradicts itself about them is reported, not decided: an
   operator restores the file from a copy. What nobody leads to gets a name in /lost+found; an inode whose record is
   gone gets a new one as long as anything of it is left.
2. What can be counted is counted again; what two rows say is made what the rest says.
3. A repair names all that it was worked out from, and is refused if that has changed
   (:mod:`shoalfs.mds.ops.mend`). So it is worked out while the filesystem is in use.

Phases: 0 inodes that are gone and rows that lead nowhere, 1 the tree, 2 what has no name, 3 counts and sizes of an
inode, 4 chunks and sessions, 5 counters. Between two phases the check is made again, because one repair may make
another one needless: a name that is back makes the file reachable.

Which kinds there are, and what becomes of each: docs/fsck.md.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shoalfs.mds import inode as inodes
from shoalfs.mds import keys, mend_inodes, mend_rows
from shoalfs.mds.mend_view import Change, Unread, View, unrepaired
from shoalfs.mds.messages import Finding, Mend, MendPlans, Plan, PlanMend
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import BadMessage, DamagedRecord
from shoalfs.transport.limits import MEND_ROWS_MAX, PLANS_MAX


@dataclass(frozen=True, slots=True)
class _Way:
    phase: int
    work_out: Callable[[View, Finding], Change]


def _reported(why: str) -> _Way:
    return _Way(0, lambda view, finding: unrepaired(why))


_FROM_COPY: Final = _reported("which bytes are right is not known: restore the file from a copy")

WAYS: Final[dict[str, _Way]] = {
    "damaged-record": _reported("in a group, replace the node with `shoal mds join`; alone, load a dump"),
    "wrong-inode-number": _Way(0, mend_inodes.number),
    "stray-row": _Way(0, mend_inodes.stray),
    "listing-without-dentry": _Way(0, mend_inodes.listing),
    "dentry-not-listed": _Way(0, mend_inodes.not_listed),
    "dangling-dentry": _Way(1, mend_inodes.dangling),
    "wrong-dentry-type": _Way(1, mend_inodes.entry_type),
    "directory-with-two-names": _Way(1, mend_inodes.two_names),
    "directory-cycle": _Way(1, mend_inodes.cycle),
    "wrong-parent": _Way(1, mend_inodes.parent),
    "unreachable-inode": _Way(2, mend_inodes.unreachable),
    "linked-orphan": _Way(3, mend_inodes.linked_orphan),
    "orphan-not-listed": _Way(3, mend_inodes.orphan),
    "wrong-trash": _Way(3, mend_inodes.trash),
    "wrong-nlink": _Way(3, mend_inodes.nlink),
    "wrong-directory-size": _Way(3, mend_inodes.directory_size),
    "wrong-cookie": _Way(3, mend_inodes.cookies),
    "wrong-used-bytes": _Way(3, mend_inodes.used_bytes),
    "wrong-extent-count": _Way(3, mend_inodes.extent_count),
    "wrong-cut-off": _Way(3, mend_inodes.cut_off),
    "wrong-xattr-bytes": _Way(3, mend_inodes.xattr_bytes),
    "wrong-symlink-size": _Way(3, mend_inodes.symlink_size),
    "bytes-past-size": _Way(3, mend_inodes.size),
    "bad-acl": _Way(3, mend_inodes.access_lists),
    "bytes-of-no-file": _Way(3, mend_inodes.bytes_of_no_file),
    "bad-extent": _FROM_COPY,
    "overlapping-extents": _FROM_COPY,
    "inline-and-extents": _FROM_COPY,
    "wrong-chunk-count": _Way(4, mend_rows.chunk_use),
    "wrong-chunk-length": _Way(4, mend_rows.chunk_use),
    "wrong-chunk-hash": _Way(4, mend_rows.chunk_use),
    "chunk-not-counted": _Way(4, mend_rows.chunk_use),
    "used-chunk-is-garbage": _Way(4, mend_rows.used_garbage),
    "wrong-garbage": _Way(4, mend_rows.garbage),
    "wrong-nonce": _Way(4, mend_rows.nonce),
    "wrong-chunk-range": _Way(4, mend_rows.chunk_range),
    "wrong-counter": _Way(5, mend_rows.counter),
    "more-findings": _reported("they come with the next round"),
}


def plan(txn: ReadTxn, request: PlanMend) -> Iterator[MendPlans | None]:
    """None: it goes on. The plans come last. Raises BadMessage."""
    findings = request.findings
    if len(findings) > PLANS_MAX:
        raise BadMessage(f"at most {PLANS_MAX} findings are asked about at a time")
    if any(not 0 <= finding.ino <= keys.U64_MAX for finding in findings):
        raise BadMessage("a finding is of what is no inode")
    view = View(txn)
    try:
        mended = inodes.load_counters(txn).mended
    except DamagedRecord as error:
        text = f"the counters are gone, without them nothing can be changed: load a dump ({error})"
        yield MendPlans(tuple(Plan(text) for _ in findings), True)
        return
    plans: dict[int, Plan] = {}
    while len(plans) < len(findings):
        for number in [number for number in range(len(findings)) if number not in plans]:
            with suppress(Unread):
                plans[number] = _plan(view, findings[number], mended)
            yield None
        if len(plans) == len(findings):
            break
        try:
            yield from view.read()
        except DamagedRecord as error:
            text = f"a record that it depends on is damaged: {error}"
            plans |= {number: Plan(text) for number in range(len(findings)) if number not in plans}
    yield MendPlans(tuple(plans[number] for number in range(len(findings))), True)


def _plan(view: View, finding: Finding, mended: int) -> Plan:
    """Raises Unread."""
    way = WAYS.get(finding.kind)
    if way is None:
        return Plan("this program does not know how")
    try:
        change = way.work_out(view, finding)
    except DamagedRecord as error:
        return Plan(f"a record that it depends on is damaged: {error}")
    if not change.is_repair or len(change.seen) > MEND_ROWS_MAX:
        return Plan(change.text if not change.is_repair else "too many rows: restore from a dump")
    mend = Mend(
        mended,
        tuple(change.seen.items()),
        tuple(change.put.items()),
        tuple(change.delete),
        tuple(change.nameless),
        tuple(change.counters.items()),
    )
    return Plan(change.text, way.phase, mend)
