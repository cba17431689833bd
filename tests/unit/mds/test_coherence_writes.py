"""The write lease of a file at the leader, while it is being called back."""

import trio

from shoalfs.mds.coherence import Coherence
from shoalfs.mds.sessions import SessionTable
from shoalfs.transport.ids import InodeId, SessionId

FILE = InodeId(5)
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
