"""The commands of ``shoal`` that a person at a machine uses; one file per command or group.

A command reads its options, calls what does the work and prints. What needs thought (which mount, which
process, what the numbers mean) is in modules of values beside it. trio, pyfuse3 and the servers are imported
inside the commands that need them: `shoal --help` has to be quick.
"""

import typer

from shoalfs.fs.cli import (
    doctor,
    down,
    dump,
    fsck,
    gc,
    info,
    mount,
    pool,
    raft,
    repair,
    scrub,
    session,
    status,
    targets,
    trash,
    up,
)


def register(app: typer.Typer) -> None:
    """Add every command of this folder to ``app``, in the order in which help lists them."""
    app.command("up")(up.up)
    app.command("down")(down.down)
    app.command("status")(status.status)
    app.command("doctor")(doctor.doctor)
    app.command("info")(info.info)
    fsck.app.command("repair")(repair.repair)
    app.add_typer(fsck.app, name="fsck")
    app.command("dump")(dump.dump)
    app.command("mount")(mount.mount)
    app.command("umount")(mount.umount)
    app.add_typer(raft.app, name="raft")
    app.add_typer(session.app, name="session")
    app.add_typer(targets.target_app, name="target")
    app.add_typer(targets.node_app, name="node")
    app.add_typer(targets.rebalance_app, name="rebalance")
    app.add_typer(scrub.app, name="scrub")
    app.add_typer(pool.app, name="pool")
    app.add_typer(gc.app, name="gc")
    app.add_typer(trash.app, name="trash")


def register_members(mds: typer.Typer) -> None:
    """Add what changes the metadata group to the commands of the metadata service, ``mds``."""
    mds.command("leave")(raft.leave)
    mds.command("transfer-leader")(raft.transfer_leader)
