"""What the targets of a server say of themselves in heartbeats: how full they are, and a part of their inventory.

Each is asked by a task of its own, and a heartbeat waits for a moment only: a disk that is slow must not make the
others of its server silent. Of a target that has not answered yet the heartbeat says what it said last, without an
inventory. It is not left out: silence of TARGET_DOWN_MS would declare it down, while how long a disk may take is for
its watch to say. It is not reported as failed: nobody knows that. An inventory that comes late is told with the next
heartbeat; it says under which map it was collected, and what it lacks by then is looked for before it is copied.
"""

from collections.abc import Callable, Iterable

import trio

from shoalfs.chunkserver.membership import Condition, Membership
from shoalfs.chunkserver.target import Target
from shoalfs.mds.messages import ScrubReport
from shoalfs.transport.errors import TargetDown
from shoalfs.transport.limits import CONDITION_PATIENCE_MS


class Looks:
    """``scrub_report``: how far verifying a target is."""

    def __init__(self, membership: Membership, scrub_report: Callable[[bytes], ScrubReport]) -> None:
        self._membership = membership
        self._scrub_report = scrub_report
        self._said: dict[bytes, Condition] = {}  # without an inventory once that was told
        self._under_way: dict[bytes, trio.Event] = {}

    async def look(self, targets: Iterable[Target], nursery: trio.Nursery) -> None:
        """Ask those that are not being asked already, and wait for them for a moment. ``nursery``: for those who go on
        waiting."""
        asked = []
        for target in targets:
            if target.uuid not in self._under_way:
                self._under_way[target.uuid] = trio.Event()
                asked.append(self._under_way[target.uuid])
                nursery.start_soon(self._ask, target)
        with trio.move_on_after(CONDITION_PATIENCE_MS / 1000):
            for answered in asked:
                await answered.wait()

    async def _ask(self, target: Target) -> None:
        uuid, epoch = target.uuid, target.epoch
        part = self._membership.next_part(uuid) if self._membership.is_registered(uuid) else None
        try:
            usage = await target.usage()
            inventory = [] if part is None else await target.chunks_after(part.after, part.chunks_max)
        except TargetDown:
            pass  # it hangs, or is being removed: what it said last stands
        else:
            if target.epoch != epoch:
                part, inventory = None, []  # of another life
            self._said[uuid] = Condition(
                usage.capacity_bytes,
                usage.used_bytes,
                usage.chunks,
                "",
                part,
                tuple(chunk for chunk, _ in inventory),
                b"".join(row.chunk_hash for _, row in inventory),
            )
        finally:
            self._under_way.pop(uuid).set()

    def capacity_bytes(self, uuid: bytes) -> int | None:
        """None: it has not said anything yet."""
        said = self._said.get(uuid)
        return None if said is None else said.capacity_bytes

    def take(self, target: Target) -> Condition:
        """What to say of a registered target now. An inventory is given out once: if the heartbeat is not answered, it
        is collected anew."""
        said = self._said[target.uuid]
        self._said[target.uuid] = said._replace(part=None, inventory=(), hashes=b"")
        return said._replace(failed=target.failed, scrub=self._scrub_report(target.uuid))

    def begin_life(self, uuid: bytes) -> None:
        """It was registered: what was collected before counts for nothing."""
        self._said[uuid] = self._said[uuid]._replace(part=None, inventory=(), hashes=b"")

    def remove(self, uuid: bytes) -> None:
        """The target is none any more."""
        self._said.pop(uuid, None)
