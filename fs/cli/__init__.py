"""The commands of ``shoal`` that a person at a machine uses; one file per command or group.

A command reads its options, calls what does the work and prints. What needs thought (which mount, which
process, what the numbers mean) is in modules of values beside it. trio, pyfuse3 and the servers are imported
inside the commands that need them: `shoal --help` has to be quick.
"""

import typer

from shoalfs.fs.cli import down, fsck, info, mount, status, up


def register(app: typer.Typer) -> None:
    """Add every command of this folder to ``app``, in the order in which help lists them."""
    app.command("up")(up.up)
    app.command("down")(down.down)
    app.command("status")(status.status)
    app.command("info")(info.info)
    app.command("fsck")(fsck.fsck)
    app.command("mount")(mount.mount)
    app.command("umount")(mount.umount)
