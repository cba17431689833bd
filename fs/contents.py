"""What this mount knows of one file as it is committed: inode, inline bytes, extents. Pure.

The one rule: inline bytes and extent map belong to ``inode.data_version``, and ``inode`` never goes back.
Answers overtake each other on the way, so every answer is compared by version before it is believed, and a
change that is not ours makes the file's bytes unknown until they are asked for again.
"""

from collections.abc import Callable, Iterable

from shoalfs.fs.extents import ExtentMap
from shoalfs.fs.ports import Buffer
from shoalfs.mds.messages import Committed, Extent, Inode, Patch, Storage
from shoalfs.transport.limits import EXTENTS_CACHED_MAX, FILE_SIZE_BYTES_MAX


class Contents:
    """``inline`` is None while unknown and while the file has extents. ``kept`` is told how many bytes of it are held
    more (or less, if negative) than before."""

    def __init__(
        self, inode: Inode, inline: Buffer | None = None, kept: Callable[[int], None] = lambda change_bytes: None
    ) -> None:
        self.inode = inode
        self._kept = kept
        self._inline: bytes | None = None
        self.extents = ExtentMap()
        # A change of ours met a change of somebody else: what the kernel has cached may be neither's. Set
        # here, cleared by whoever has made the kernel forget its pages.
        self.mixed = False
        self.learn(inode, inline)

    @property
    def inline(self) -> bytes | None:
        return self._inline

    @inline.setter
    def inline(self, inline: bytes | None) -> None:
        change_bytes = len(inline or b"") - len(self._inline or b"")
        self._inline = inline
        if change_bytes:
            self._kept(change_bytes)

    @property
    def is_inline(self) -> bool:
        return self.inode.storage == Storage.INLINE

    def learn(self, inode: Inode, inline: Buffer | None = None) -> bool:
        """Take in an answer about this file. False: it is older than what is known, and ignored."""
        assert inode.ino == self.inode.ino
        if inode.version < self.inode.version:
            return False
        if inode.data_version != self.inode.data_version:
            self.forget()
        self.inode = inode
        if inline is not None and self.is_inline:
            self.inline = bytes(inline)
        return True

    def learn_page(self, inode: Inode, extents: Iterable[Extent], start: int, end: int | None) -> bool:
        """Take in all extents that reach into [start, end); None: to the end of the file. False as for
        learn()."""
        if not self.learn(inode):
            return False
        if len(self.extents) > EXTENTS_CACHED_MAX:
            self.extents.forget()
        self.extents.know(start, FILE_SIZE_BYTES_MAX if end is None else end)
        for extent in extents:
            self.extents.overlay(extent)
        return True

    def committed_extents(self, reply: Committed, extents: Iterable[Extent]) -> None:
        """Our commit linked ``extents`` (at their final offsets), later ones over earlier ones."""
        if self._follows(reply) and not self.is_inline:
            for extent in extents:
                self.extents.overlay(extent)
        elif self._follows(reply):
            # The file left its inode with this commit, so these extents are all it has.
            self.inline = None
            self.extents.truncate(0)
            for extent in extents:
                self.extents.overlay(extent)
        else:
            self.mixed = True
            self.forget()
        self._adopt(reply.inode)

    def merged(self, reply: Committed, extent: Extent) -> None:
        """``extent`` has taken the place of others with the same bytes. Where something was changed since, it is
        another version; then what is known is of that, and finds out about this when it has to."""
        if reply.inode.data_version == self.inode.data_version and not self.is_inline:
            self.extents.overlay(extent)
            self.learn(reply.inode)

    def committed_inline(self, reply: Committed, patches: Iterable[Patch]) -> None:
        """Our commit wrote ``patches`` (at their final offsets) into the inode."""
        if self._follows(reply) and self.inline is not None:
            data = bytearray(self.inline)
            for patch in patches:
                data.extend(bytes(max(0, patch.offset_bytes - len(data))))
                data[patch.offset_bytes : patch.offset_bytes + len(patch.data)] = patch.data
            self.inline = bytes(data)
        else:
            self.mixed = True
            self.forget()
        self._adopt(reply.inode)

    def reshaped(self, inode: Inode) -> None:
        """We cut or stretched the file, made holes in it, or cloned into it. The reply does not say whether others
        wrote, so unless nothing is left of the file, its bytes are unknown."""
        if inode.data_version != self.inode.data_version:
            self.mixed = self.mixed or inode.data_version != self.inode.data_version + 1
            self.forget()
            if inode.size_bytes == 0:
                self.inline = b""
                self.extents.truncate(0)
        self._adopt(inode)

    def forget(self) -> None:
        """The bytes are unknown; the attributes stay."""
        self.inline = None
        self.extents.forget()

    def _follows(self, reply: Committed) -> bool:
        """True if nobody changed the file between what is known here and this commit of ours."""
        return reply.previous_data_version == self.inode.data_version

    def _adopt(self, inode: Inode) -> None:
        """An answer that is older than what is known says nothing about the file as it is now: an answer that
        came in between has overtaken it, and what the overtaken one changed is already part of the other."""
        if inode.version < self.inode.version:
            self.forget()
            return
        self.inode = inode
