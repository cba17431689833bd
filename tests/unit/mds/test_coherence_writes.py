"""Write leases at the leader: while one is called back, and before all have reported to it."""

import trio

from shoalfs.mds import messages as m
from shoalfs.mds.coherence import Coherence
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.mds.reads import StoredListing
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.ids import InodeId, SessionId

FILE, DIRECTORY = InodeId(5), InodeId(6)
WRITER, OTHER = SessionId(1), SessionId(2)


async def test_who_opens_to_write_while_the_lease_is_called_back_is_not_given_it(nursery):
    sessions = SessionTable(20_000)
    for session in (WRITER, OTHER):
        sessions.opened(session, "test", 0)
    coherence = Coherence(nursery, sessions, lambda: True, lambda: 0)
    assert coherence.may_write_at_once(WRITER, FILE)
    with trio.move_on_after(0.01):
        await coherence.settle(OTHER, FILE)  # the writer is asked, and does not answer
    assert not coherence.may_write_at_once(OTHER, FILE)
    assert not coherence.may_write_at_once(WRITER, FILE)
    nursery.cancel_scope.cancel()


async def test_names_are_not_leased_before_all_have_reported(nursery):
    """What a session has made in the directory and is about to report would stay unknown to whoever was told before."""
    sessions = SessionTable(20_000)
    sessions.lead([(WRITER, "test"), (OTHER, "test")], 0)
    sessions.renew(OTHER, (), 0)
    coherence = Coherence(nursery, sessions, lambda: True, lambda: 0)
    assert not coherence.looked_up(m.Lookup(ROOT, DIRECTORY, b"f", OTHER), None).name_leased
    listing = coherence.listed(m.ReadDir(ROOT, DIRECTORY, 0, 10, OTHER), StoredListing((), eof=True))
    assert not listing.leased
    coherence.restore_writes(WRITER, [DIRECTORY])
    sessions.renew(WRITER, (), 0)
    assert not coherence.looked_up(m.Lookup(ROOT, DIRECTORY, b"f", OTHER), None).name_leased, "it is the other's own"
    assert coherence.table.writer(DIRECTORY) == WRITER
    nursery.cancel_scope.cancel()


async def test_who_has_cached_attributes_is_told_that_they_changed_by_themselves(nursery):
    sessions = SessionTable(20_000)
    for session in (WRITER, OTHER):
        sessions.opened(session, "test", 0)
    coherence = Coherence(nursery, sessions, lambda: True, lambda: 0)
    assert coherence.lease(WRITER, FILE)
    assert coherence.lease(OTHER, DIRECTORY)
    told = []
    coherence.recalls.push = lambda session, what, done, **_: told.append((session, what.inodes, done))
    coherence.attributes_changed(FILE)
    ((session, inodes, done),) = told
    assert (session, inodes) == (WRITER, {FILE})
    assert not coherence.lease(OTHER, FILE), "what is being called back is not given to others"
    done()
    assert coherence.lease(OTHER, FILE)
    coherence.attributes_changed(InodeId(77))
    assert len(told) == 1
    assert coherence.lease(OTHER, InodeId(77))
    nursery.cancel_scope.cancel()
