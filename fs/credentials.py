"""On whose behalf a request runs: uid and gid come with it, supplementary groups from /proc.

Reading /proc for every request would cost more than the request, so the groups of a process are kept for a second.
A process that changes its groups is seen with the old ones for that long; a recycled pid is told apart by its uid and
gid only, which bounds the mistake to groups of the same user within one second. Root needs no groups.
"""

from collections import OrderedDict
from collections.abc import Callable

from shoalfs.mds.messages import Credentials
from shoalfs.transport.limits import GROUPS_MAX

_KEEP_S = 1.0
_ENTRIES_MAX = 4_096


class CredentialsCache:
    """Makes :class:`Credentials` from what FUSE tells.

    ``groups_of(pid)`` returns the supplementary groups and raises OSError for a process that is gone; ``clock`` counts
    seconds.
    """

    def __init__(self, groups_of: Callable[[int], set[int]], clock: Callable[[], float]) -> None:
        self._groups_of = groups_of
        self._clock = clock
        self._known: OrderedDict[tuple[int, int, int], tuple[float, Credentials]] = OrderedDict()
        self._roots: dict[int, Credentials] = {}

    def of(self, pid: int, uid: int, gid: int) -> Credentials:
        if uid == 0:
            who = self._roots.get(gid)
            if who is None:
                self._roots.clear()
                who = self._roots[gid] = Credentials(0, gid)
            return who
        key = (pid, uid, gid)
        now = self._clock()
        known = self._known.get(key)
        if known is not None and now - known[0] < _KEEP_S:
            return known[1]
        try:
            groups = tuple(sorted(self._groups_of(pid)))[:GROUPS_MAX]
        except OSError:
            groups = ()  # the process ended meanwhile; what it asked for is judged by uid and gid
        who = Credentials(uid, gid, groups)
        self._known[key] = (now, who)
        self._known.move_to_end(key)
        if len(self._known) > _ENTRIES_MAX:
            self._known.popitem(last=False)
        return who
