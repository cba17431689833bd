"""What has to become of the data world once all faults have ended: it comes to rest, and then everything is in its
place."""

from shoalfs.mds import messages as m
from shoalfs.mds.messages import TargetState
from shoalfs.transport.ids import InodeId, chunk_pg
from sim.broken import Broken
from sim.data_world import DataWorld


def come_to_rest(world: DataWorld, steps: int = 60) -> None:
    """Servers return, targets are resumed, clients are gone; no longer than so many heartbeats later every copy is in
    its place, nothing else is anywhere, and everything that was promised can be read. What was never promised and is
    lost is written over first: it is of no use, and nothing settles that lacks something. Raises Broken."""
    for server in world.servers:
        if not server.up:
            server.restart()
    for writer in world.writers:
        world.fence(writer)
    for _ in range(3):
        world.step()
    for target, state in world.states().items():
        if state in (TargetState.DRAINING, TargetState.OUT):
            world.md.do(m.SetTargetState(target, TargetState.SYNCING), session=0)
    groups = {group.id: group for group in world.md.map().groups}
    for ino, extent in world.linked():
        if world.spread(groups[chunk_pg(extent.chunk)], extent, durable=False) < world.pool.data:
            if extent.chunk in world.promised:
                raise Broken(f"chunk {extent.chunk:x} is lost")
            _write_over(world, ino, extent)
    world.until(world.settled, "every copy is in its place", steps)
    world.new_session()  # what was stored and refused belongs to nobody now
    world.until(lambda: not world.surplus(), "nothing superfluous is left", steps)
    world.until(world.settled, "every copy stays in its place", steps)
    world.check()
    if world.read_all() != world.pool.replicas * len(world.extents()):
        raise Broken("some copies cannot be read")
    findings = world.md.findings()
    if findings:
        raise Broken(f"fsck finds {findings[:3]}")


def _write_over(world: DataWorld, ino: InodeId, extent: m.Extent) -> None:
    for _ in range(30):
        group = next(group for group in world.md.map().groups if group.id == chunk_pg(extent.chunk))
        if world.write(group, set(group.targets), extent.offset_bytes, ino) is not None:
            return
        world.step()
    raise Broken("nothing can be written")
