"""Mistakes that can be planted into the protocol of directories that one mount writes to alone (docs/leases.md): each
takes one rule out, and name_world.py must find it."""

from typing import Any

from harness.compiled_part import CompiledPart
from shoalfs.fs.coherent import Coherent
from shoalfs.fs.file import FileData
from shoalfs.fs.leases import UNKNOWN, LeaseCache
from shoalfs.fs.making import Making
from shoalfs.fs.new_files import NOTHING
from shoalfs.fs.vfs import Vfs
from shoalfs.mds import coherence, service
from shoalfs.mds import messages as m
from sim.planted_leases import Patch, Plant

MISTAKES: dict[str, Plant] = {}


def mistake(plant: Plant) -> Plant:
    MISTAKES[plant.__name__] = plant
    return plant


# --- the leader ------------------------------------------------------------------------------------------------------


@mistake
def lookups_do_not_wait_for_the_holder(patch: Patch) -> None:
    real = service._settled_before
    patch.setattr(service, "_settled_before", lambda request: None if isinstance(request, m.Lookup) else real(request))


@mistake
def the_lease_is_given_beside_those_who_know_the_names(patch: Patch) -> None:
    real = coherence.Coherence.lease_write

    async def lease_write(self: Any, session: Any, ino: Any, *, directory: bool) -> Any:
        holders, self.table._names_holders = self.table._names_holders, {}
        try:
            return await real(self, session, ino, directory=directory)
        finally:
            self.table._names_holders = holders

    patch.setattr(coherence.Coherence, "lease_write", lease_write)


# --- the mount -------------------------------------------------------------------------------------------------------


@mistake
def what_was_made_is_not_told_when_it_is_called_back(patch: Patch) -> None:
    async def tell_nothing(self: Any, directory: Any) -> bool:
        return True

    patch.setattr(Making, "told_all_in", tell_nothing)


@mistake
def files_are_made_where_names_are_not_all_known(patch: Patch) -> None:
    real = Making._may_make

    def may_make(self: Any, request: Any) -> bool:
        if self._cache.name(request.parent, request.name) is not UNKNOWN:
            return real(self, request)
        return request.parent in self._cache.writes and self._cache.inode(request.parent) is not None

    patch.setattr(Making, "_may_make", may_make)


@mistake
def files_are_made_after_it_was_called_back(patch: Patch) -> None:
    real = Making._may_make

    def may_make(self: Any, request: Any) -> bool:
        self._cache.writes.add(request.parent)
        return real(self, request)

    patch.setattr(Making, "_may_make", may_make)


@mistake
def a_sync_of_the_directory_does_not_tell(patch: Patch) -> None:
    async def fsyncdir(self: Any, number: int) -> None:
        return None

    patch.setattr(Vfs, "fsyncdir", fsyncdir)


@mistake
def a_sync_of_the_directory_leaves_bytes_out(patch: Patch) -> None:
    async def fsyncdir(self: Any, number: int) -> None:
        await self._metadata.new_files.tell_all_in(self._handles.dir(number).ino)

    patch.setattr(Vfs, "fsyncdir", fsyncdir)


@mistake
def times_are_told_before_the_commit_that_sets_them(patch: Patch) -> None:
    async def getattr_(self: Any, ino: Any) -> Any:
        return self._seen(await self._metadata.getattr(ino))

    patch.setattr(Vfs, "getattr", getattr_)


@mistake
def files_in_chunks_are_told_of_without_them(patch: Patch) -> None:
    async def store_whole(self: Any, whole: Any) -> Any:
        await self._committer.store_whole(whole)
        return NOTHING

    patch.setattr(FileData, "store_whole", store_whole)


@mistake
def mutations_overtake_what_was_made(patch: Patch) -> None:
    async def settle(self: Any, request: Any) -> None:
        return None

    patch.setattr(Making, "settle", settle)


# --- the compiled part -----------------------------------------------------------------------------------------------


@mistake
def the_compiled_part_goes_on_after_the_lease_was_called_back(patch: Patch) -> None:
    real = LeaseCache.drop_write

    def drop_write(self: Any, ino: Any) -> None:
        self._on_write_gone = lambda ino: None
        real(self, ino)

    patch.setattr(LeaseCache, "drop_write", drop_write)


@mistake
def a_new_leader_is_not_told_of_what_the_compiled_part_made(patch: Patch) -> None:
    def kept_writes(self: Any) -> Any:
        dirty = (ino for ino in self.cache.writes | self._owed if self._files is not None and self._files.is_dirty(ino))
        return (*dirty, *self.new_files.directories)

    patch.setattr(Coherent, "kept_writes", kept_writes)
    patch.setattr(Coherent, "drop_everything", _drops_without_revoking(Coherent.drop_everything))


def _drops_without_revoking(real: Any) -> Any:
    def drop_everything(self: Any) -> None:
        revoke, self.making.revoke_native = self.making.revoke_native, lambda directory: None
        real(self)
        self.making.revoke_native = revoke

    return drop_everything


@mistake
def the_compiled_part_is_not_told_of_names_that_are_there(patch: Patch) -> None:
    patch.setattr(Making, "names_in", lambda self, directory: [])


@mistake
def a_sync_of_the_directory_forgets_the_compiled_part(patch: Patch) -> None:
    real = CompiledPart.give

    def give(self: Any, node: int = 0, *, changes: bool = False) -> None:
        if node not in self.granted:
            real(self, node, changes=changes)

    patch.setattr(CompiledPart, "give", give)


@mistake
def the_compiled_part_makes_files_when_leases_are_over(patch: Patch) -> None:
    patch.setattr(CompiledPart, "believes", lambda self: True)
    patch.setattr(Coherent, "drop_everything", _drops_without_revoking(Coherent.drop_everything))
