"""Directories as programs read them: page by page, and the next page is fetched while one is read.

A page is as old as its question. What POSIX asks of a listing holds all the same: names that were there all the time
are in it once (cookies are stable), and after rewinddir(3) it begins with a new question. The *attributes* of an entry
may have changed since, and the kernel keeps what it is told with an entry: so whoever passes one on asks
:meth:`~shoalfs.fs.vfs.Vfs.newest` for them, in that moment.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import trio

from shoalfs.fs.coherent import Coherent
from shoalfs.mds import messages as m
from shoalfs.transport.errors import ShoalError
from shoalfs.transport.ids import InodeId
from shoalfs.transport.limits import READDIR_ENTRIES_MAX

Shown = tuple[bytes, m.Inode, int, bool, bool]
"""An entry as the kernel is told of it: the name, the inode as programs here see it, the cookie, and whether the kernel
may keep the name and the attributes while leases last."""

_AHEAD_MAX: Final = 16  # pages that are fetched before they are asked for, at a time
_NOTHING: Final = m.Listing((), eof=False)


@dataclass(slots=True, eq=False)
class _Ahead:
    """A page that is on its way, or here."""

    after: int
    done: trio.Event = field(default_factory=trio.Event)
    listing: m.Listing | None = None  # None: it could not be had


class Listing:
    """One opendir(3). Not for use by several tasks at a time; the kernel does not."""

    def __init__(self, listings: "Listings", who: m.Credentials, ino: InodeId) -> None:
        self.ino = ino
        self._listings = listings
        self._who = who
        self._page = _NOTHING
        self._page_after = 0  # the cookie after which it begins
        self._ahead: _Ahead | None = None

    async def after(self, cookie: int) -> tuple[tuple[m.DirEntry, ...], bool]:
        """Entries after ``cookie`` (0: from the start), empty at the end; and whether they came just now. Raises
        ShoalError. Cancelled: nothing has happened."""
        page = self._page.entries if cookie else ()  # rewinddir(3): what was made since the opening shows
        if page and self._page_after <= cookie < page[-1].cookie:
            return page[bisect_right(page, cookie, key=attrgetter("cookie")) :], False
        if page and self._page.eof and cookie == page[-1].cookie:
            return (), False
        listing = await self._next(cookie)
        self._page, self._page_after = listing, cookie
        if listing.entries and not listing.eof:
            self._ahead = self._listings.fetch_ahead(self._request(listing.entries[-1].cookie))
        return listing.entries, True

    async def _next(self, cookie: int) -> m.Listing:
        ahead, self._ahead = self._ahead, None
        if cookie and ahead is not None and ahead.after == cookie:
            await ahead.done.wait()
            if ahead.listing is not None:
                return ahead.listing
        return await self._listings.metadata.readdir(self._request(cookie))

    def _request(self, cookie: int) -> m.ReadDir:
        return m.ReadDir(self._who, self.ino, cookie, READDIR_ENTRIES_MAX)


class Listings:
    """Fetches pages. Until :meth:`run` runs, none is fetched ahead."""

    def __init__(self, metadata: Coherent) -> None:
        self.metadata = metadata
        self._nursery: trio.Nursery | None = None
        self._fetching = 0  # at most _AHEAD_MAX

    def open(self, who: m.Credentials, ino: InodeId) -> Listing:
        return Listing(self, who, ino)

    def fetch_ahead(self, request: m.ReadDir) -> _Ahead | None:
        """Have a page fetched, if there is room for that. One that cannot be had is asked for again by who wants it."""
        if self._nursery is None or self._fetching >= _AHEAD_MAX:
            return None
        ahead = _Ahead(request.cookie)
        self._fetching += 1
        self._nursery.start_soon(self._fetch, request, ahead)
        return ahead

    async def _fetch(self, request: m.ReadDir, ahead: _Ahead) -> None:
        try:
            ahead.listing = await self.metadata.readdir(request)
        except ShoalError:
            pass  # whoever wants it asks again, and is told
        finally:
            self._fetching -= 1
            ahead.done.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                await trio.sleep_forever()
        finally:
            self._nursery = None
