"""Running a function as somebody else: in a child process, since a process that gave up root cannot take it back."""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

NOBODY = 65534


def run_as(function: Callable[[], Any], uid: int = NOBODY, gid: int = NOBODY, groups: Sequence[int] = ()) -> Any:
    """What ``function`` returns (anything JSON has) when ``uid`` calls it. Raises the OSError that it raised.

    The child is a plain fork: another user may not be allowed to read the interpreter's files again.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: object = None
        try:
            os.setgroups(list(groups))
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = ["returned", function()]
        except OSError as error:
            answer = ["oserror", error.errno, os.fsdecode(error.filename or "")]
        except BaseException:
            answer = ["failed", traceback.format_exc()]
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        kind, *rest = json.loads(pipe.read())
    os.waitpid(pid, 0)
    if kind == "oserror":
        raise OSError(rest[0], os.strerror(rest[0]), rest[1])
    assert kind == "returned", rest[0]
    return rest[0]
