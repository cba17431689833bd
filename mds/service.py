"""The methods of the metadata service: who may ask what, and where the answer comes from.

Reads come from the leader's store without Raft, under its lease, and are answered without waiting when the lease
holds. Mutations go through the :class:`~shoalfs.mds.batcher.Batcher`. What only the leader remembers (opens, usage)
is noted here, in the same task step as the read that it belongs to, so that no unlink can come between.
"""

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import trio

from shoalfs.mds import cluster, placement, pool_users, reads, trash_list
from shoalfs.mds import inode as inodes
from shoalfs.mds import messages as m
from shoalfs.mds.batcher import Batcher
from shoalfs.mds.coherence import Admission, Coherence
from shoalfs.mds.heartbeats import Heartbeats
from shoalfs.mds.leader_state import LeaderState
from shoalfs.mds.lock_service import LockService
from shoalfs.mds.replicated import ReplicatedLog
from shoalfs.mds.store import LmdbStore
from shoalfs.mds.txn import ReadTxn
from shoalfs.transport.errors import NotAllowed, NotLeader, PosixError, SessionGone, ShoalError
from shoalfs.transport.frame import Payload
from shoalfs.transport.ids import InodeId, SessionId, TargetId
from shoalfs.transport.limits import ENTRY_COMMANDS_MAX
from shoalfs.transport.method import Method, Nothing
from shoalfs.transport.service import Call, Done, Prompt, Service

Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)
_encode = msgspec.msgpack.Encoder().encode

_OPERATOR_OPS = frozenset(
    {
        m.Op.SET_TARGET_STATE,
        m.Op.REMOVE_TARGET,
        m.Op.SET_UPKEEP,
        m.Op.MEND,
        m.Op.PURGE_TRASH,
        m.Op.RESTORE_TRASH,
        m.Op.CREATE_POOL,
        m.Op.SET_POOL,
        m.Op.REMOVE_POOL,
    }
)
_CHUNKSERVER_OPS = frozenset({m.Op.REGISTER_TARGET})
_LEADER_OPS = frozenset({m.Op.REAP, m.Op.ADD_GARBAGE, m.Op.DROP_GARBAGE, m.Op.CHANGE_GROUP, m.Op.SETTLE_GROUP})
_CLIENT_OPS = frozenset(m.Op) - _OPERATOR_OPS - _CHUNKSERVER_OPS - _LEADER_OPS
_OPS_OF_ROLE = {
    m.CLIENT: _CLIENT_OPS,
    m.ADMIN: _CLIENT_OPS | _OPERATOR_OPS,
    m.CHUNKSERVER: _CHUNKSERVER_OPS,
}
"""Which operations a peer may send. The rest is proposed by the leader itself."""
_OF_SESSION = m.Open | m.FetchFiles | m.Renew | m.Release
"""Questions of a session that must be alive."""
_SETTLING = m.GetAttr | m.Open | m.ReadDir
"""Questions whose answers programs see: what others have written to the inode is committed first. The attributes in
the answer to a LOOKUP or a listing are "not leased" instead, and the kernel asks before it shows them."""
_LEASING = m.Lookup | m.GetAttr | m.ReadDir
"""Questions that wish for leases if they name a session."""


def _settled_before(request: Any) -> tuple[SessionId, InodeId] | None:
    """Who asks, and the inode of which this is to be answered with all that others have done to it."""
    if isinstance(request, m.Lookup):
        return request.session, request.parent
    return (request.session, request.ino) if isinstance(request, _SETTLING) else None


class MdsService:
    """Handlers of all methods, over the store, the log and the leader's memory."""

    def __init__(
        self,
        store: LmdbStore,
        log: ReplicatedLog,
        batcher: Batcher,
        state: LeaderState,
        now_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._log = log
        self._batcher = batcher
        self._state = state
        self._now_ms = now_ms
        self._heartbeats = Heartbeats(state, now_ms)
        self.counters: Counter[str] = Counter()

    def install(self, service: Service) -> None:
        """Offer the methods on ``service``."""
        answers: list[tuple[Method[Any, Any], Callable[[ReadTxn, Any], Any]]] = [
            (m.LOOKUP, self._lookup),
            (m.LOOKUP_MANY, reads.lookup_many),
            (m.GETATTR, self._getattr),
            (m.READLINK, reads.readlink),
            (m.READDIR, self._readdir),
            (m.ACCESS, reads.access),
            (m.GET_EXTENTS, reads.get_extents),
            (m.GETXATTR, reads.getxattr),
            (m.LISTXATTR, reads.listxattr),
            (m.GET_MAP, lambda txn, _: reads.cluster_map(txn)),
            (m.CLASSIFY_CHUNKS, reads.classify_chunks),
            (m.RESOLVE, reads.resolve),
            (m.POOL_USERS, pool_users.pool_users),
            (m.LIST_TRASH, trash_list.list_trash),
            (m.STATFS, self._statfs),
            (m.STATUS, self._status),
            (m.OPEN, self._open),
            (m.FETCH_FILES, self._fetch_files),
            (m.RENEW, self._renew),
            (m.RELEASE, self._release),
            (m.HEARTBEAT, self._heartbeats.heartbeat),
            (m.REPORT_REPLICAS, self._heartbeats.report_replicas),
        ]
        for method, function in answers:
            service.add(method, self._reader(function), self._prompt_reader(function))
        service.add(m.MUTATE, self._mutate, self._prompt_mutate)
        LockService(self._state.locks, self._lead, self._state.sessions.accepts, self._now_ms).install(service)
        service.add(m.LEASE_WRITE, self._lease_write)
        service.add(m.EVICT, self._evict)

    async def run(self) -> None:
        """What is pushed to the clients is pushed here, until cancelled. Must be running."""
        async with trio.open_nursery() as self._pushes:
            await trio.sleep_forever()

    # --- the two ways to answer --------------------------------------------------------------------------------------

    def _reader(self, function: Callable[[ReadTxn, Q], Any]) -> Callable[[Call, Q, memoryview], Any]:
        """A handler that answers from one consistent view of the store, once it is settled that this has everything
        that was acknowledged before."""

        async def handle(call: Call, request: Q, payload: memoryview) -> Any:
            await self._lead()
            asked = _settled_before(request)
            if asked is not None and self._coherence.must_settle(*asked):
                self._hear_asking(call, request)
                await self._coherence.settle(*asked)
                await self._lead()
            return self._read(function, call, request)

        return handle

    def _prompt_reader(self, function: Callable[[ReadTxn, Q], Any]) -> Prompt[Q, Any]:
        """The same without waiting, while the lease holds."""

        def answer(call: Call, request: Q, payload: memoryview, done: Done[Any]) -> bool:
            if not self._leads():
                return False
            asked = _settled_before(request)
            if asked is not None and self._coherence.must_settle(*asked):
                return False
            reply = self._read(function, call, request)
            # The lease is looked at again after reading: the process may have been stopped for long in between.
            if not self._log.may_serve_reads():
                return False
            done(reply)
            return True

        return answer

    def _read(self, function: Callable[[ReadTxn, Q], Any], call: Call, request: Q) -> Any:
        self.counters["reads"] += 1
        self._hear_asking(call, request)
        with self._store.read() as txn:
            return function(txn, request)

    def _hear_asking(self, call: Call, request: Any) -> None:
        if isinstance(request, _OF_SESSION) or (isinstance(request, _LEASING) and request.session):
            self._hear(call, request.session)

    def _hear(self, call: Call, session: SessionId) -> None:
        """A request of this session came. Raises SessionGone if it is not alive."""
        if not self._state.sessions.accepts(session):
            raise SessionGone
        self._coherence.recalls.heard(session, call.connection)

    @property
    def _coherence(self) -> Coherence:
        assert self._state.coherence is not None, "this node has led nothing yet"
        return self._state.coherence

    def _leads(self) -> bool:
        """This node may answer at once: it leads, its lease holds, and its memory is of this leadership."""
        return self._log.may_serve_reads() and self._state.term == self._log.term_as_leader()

    async def leading(self) -> None:
        """Return once it is settled that this node leads and has all that was acknowledged. Raises NotLeader."""
        await self._lead()

    async def _lead(self) -> None:
        """Return once a request that came before this call may be answered, with the memory of this leadership."""
        if not self._log.may_serve_reads():
            await self._log.read_barrier()
        term = self._log.term_as_leader()
        if term and term != self._state.term:
            with self._store.read() as txn:
                coherence = Coherence(
                    self._pushes, self._state.sessions, lambda: self._log.term_as_leader() == term, self._now_ms
                )
                self._state.lead(txn, term, self._now_ms(), coherence)

    # --- reads under leases ------------------------------------------------------------------------------------------

    def _lookup(self, txn: ReadTxn, request: m.Lookup) -> m.LookedUp:
        self.counters["questions"] += 1
        if not request.session or request.name in (b".", b".."):
            inode = reads.lookup(txn, request).inode
            return m.LookedUp(inode, self._coherence.lease(request.session, inode.ino))
        try:
            found = reads.lookup(txn, request).inode
        except PosixError as error:
            if error.errno != errno.ENOENT:
                raise
            found = None
        return self._coherence.looked_up(request, found)

    def _getattr(self, txn: ReadTxn, request: m.GetAttr) -> m.Entry:
        self.counters["questions"] += 1
        inode = reads.getattr_(txn, request).inode
        return m.Entry(inode, self._coherence.lease(request.session, inode.ino))

    def _readdir(self, txn: ReadTxn, request: m.ReadDir) -> reads.StoredListing:
        self.counters["questions"] += 1
        return self._coherence.listed(request, reads.readdir(txn, request))

    def _fetch_files(self, txn: ReadTxn, request: m.FetchFiles) -> tuple[reads.StoredFetchedMany, Payload]:
        self.counters["questions"] += 1
        answer, payload = reads.fetch_files(txn, request)
        return self._coherence.fetched(request, answer), payload

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _open(self, txn: ReadTxn, request: m.Open) -> tuple[m.Opened, Payload]:
        self.counters["questions"] += 1
        opened, inline = reads.open_(txn, request)
        ino = opened.inode.ino
        if ino in self._state.reaping:
            raise PosixError(errno.ESTALE, "the file is being removed")
        if not self._state.sessions.hold(request.session, ino):
            raise PosixError(errno.ENFILE, "the session has too many files open")
        leased = self._coherence.lease(request.session, ino)
        write_leased = leased and request.write and self._coherence.may_write_at_once(request.session, ino)
        return m.Opened(opened.inode, leased, write_leased), inline

    def _renew(self, txn: ReadTxn, request: m.Renew) -> m.Renewed:
        opens = request.opens if request.reported_term == self._state.term else None
        reports = opens is not None and not self._state.sessions.has_reported(request.session)
        want_opens = self._state.sessions.renew(request.session, opens, self._now_ms())
        if reports:
            self._coherence.restore_writes(request.session, request.writes)
        return m.Renewed(self._state.sessions.ttl_ms, reads.map_epoch(txn), want_opens, self._state.term)

    def _release(self, txn: ReadTxn, request: m.Release) -> Nothing:
        self._state.sessions.release(request.session, request.inos)
        for ino in request.inos:
            self._coherence.table.drop_write(request.session, ino)
        return Nothing()

    async def _lease_write(self, call: Call, request: m.LeaseWrite, payload: memoryview) -> m.WriteLeased:
        """Of a file that the session has open, which it need not have said before; of a directory, it is now."""
        await self._lead()
        self._hear(call, request.session)
        if not self._state.sessions.hold(request.session, request.ino):
            raise PosixError(errno.ENFILE, "the session has too many files open")
        coherence = self._coherence
        with self._store.read() as txn:
            directory = inodes.load(txn, request.ino).is_dir
        answer = await coherence.lease_write(request.session, request.ino, directory=directory)
        await self._lead()
        if coherence.is_over:
            raise NotLeader  # who gave it does not count any more
        return answer

    # --- mutations ---------------------------------------------------------------------------------------------------

    async def _mutate(self, call: Call, request: m.Mutate, payload: memoryview) -> Any:
        self._check_mutation(call, request)
        await self._lead()
        if request.session:
            self._hear(call, request.session)
        admission = await self._coherence.admit(request.session, request.commands, self._store.read)
        answered = trio.Event()
        answer: reads.StoredMutated | ShoalError = SessionGone()

        def done(found: reads.StoredMutated | ShoalError) -> None:
            nonlocal answer
            answer = found
            answered.set()

        self._submit(request, admission, done)
        await answered.wait()
        if isinstance(answer, ShoalError):
            raise answer
        return answer

    def _prompt_mutate(self, call: Call, request: m.Mutate, payload: memoryview, done: Done[Any]) -> bool:
        self._check_mutation(call, request)
        if not self._leads():
            return False
        if request.session:
            self._hear(call, request.session)
        admission = self._coherence.admit_now(request.session, request.commands, self._store.read)
        if admission is None:
            return False
        self._submit(request, admission, done)
        return True

    def _submit(
        self, request: m.Mutate, admission: Admission, done: Callable[[reads.StoredMutated | ShoalError], None]
    ) -> None:
        """Have the commands applied; ``done`` is called later. Raises as :meth:`Batcher.begin`."""

        def applied(index: int, outcomes: list[m.Outcome]) -> None:
            leased, directories = admission.end(outcomes)
            done(self._mutated(request, index, outcomes, leased, directories))

        def failed(error: ShoalError) -> None:
            admission.end(None)
            done(error)

        try:
            self._batcher.begin(request.session, request.commands, applied, failed, admission.is_valid)
        except ShoalError:
            admission.end(None)
            raise

    def _check_mutation(self, call: Call, request: m.Mutate) -> None:
        if not 0 < len(request.commands) <= ENTRY_COMMANDS_MAX:
            raise PosixError(errno.EINVAL, f"1 to {ENTRY_COMMANDS_MAX} commands travel together")
        allowed = _OPS_OF_ROLE[call.peer.role]
        for command in request.commands:
            if command.op not in allowed:
                raise NotAllowed(
                    f"a {call.peer.role} may not send operation {command.op}: use a certificate of another role"
                )

    def _mutated(
        self,
        request: m.Mutate,
        index: int,
        outcomes: list[m.Outcome],
        leased: tuple[bool, ...],
        directories: tuple[InodeId, ...],
    ) -> reads.StoredMutated:
        """The answer, and what the leader has to remember of it. Called in the step in which it was applied."""
        self.counters["mutations"] += len(outcomes)
        for command, outcome in zip(request.commands, outcomes, strict=True):
            if not outcome.code:
                self._remember(request.session, command, outcome)
        stored: tuple[msgspec.Raw, ...] = ()
        if directories:
            with self._store.read() as txn:
                stored = reads.stored_inodes(txn, directories)
        return reads.StoredMutated(index, tuple(outcomes), leased, stored)

    def _remember(self, session: SessionId, command: m.Command, outcome: m.Outcome) -> None:
        """Note what a mutation means for the leader's memory: sessions that begin and end, files created open."""
        sessions = self._state.sessions
        if command.op in (m.Op.CREATE, m.Op.TMPFILE):
            if sessions.knows(session):
                made = msgspec.msgpack.decode(outcome.body, type=m.Entry)  # what both answers have in common
                sessions.hold(session, made.inode.ino)
        elif command.op == m.Op.OPEN_SESSION:
            request = msgspec.msgpack.decode(command.body, type=m.OpenSession)
            opened = msgspec.msgpack.decode(outcome.body, type=m.SessionOpened)
            sessions.opened(opened.session, request.client, self._now_ms())
            self._state.locks.opened(opened.session)
        elif command.op == m.Op.END_SESSION:
            self._state.session_ended(msgspec.msgpack.decode(command.body, type=m.EndSession).session)

    async def _evict(self, call: Call, request: m.EvictSession, payload: memoryview) -> Nothing:
        """Ends a session once its client has dropped everything, or once its TTL is over (the leader's duties)."""
        await self._lead()
        session = request.session
        if not self._state.sessions.knows(session):
            raise PosixError(errno.ENOENT, f"there is no session {session}")
        dropped = trio.Event()
        self._coherence.evict(session, dropped.set)
        await dropped.wait()
        if self._state.sessions.knows(session):
            command = m.Command(0, 0, m.Op.END_SESSION, msgspec.Raw(_encode(m.EndSession(session, expired=True))))
            await self._batcher.submit(SessionId(0), [command])
            self._state.session_ended(session)
        return Nothing()

    # --- operators ---------------------------------------------------------------------------------------------------

    def _statfs(self, txn: ReadTxn, _: m.StatFs) -> m.FsStat:
        usage: dict[TargetId, tuple[int, int]] = {}
        for target in reads.cluster_map(txn).targets:
            seen = self._state.targets.usage(target.id)
            if seen is not None:
                usage[target.id] = (seen.capacity_bytes, seen.used_bytes)
        return reads.statfs(txn, usage)

    def _status(self, txn: ReadTxn, _: m.GetStatus) -> m.MdsStatus:
        now_ms = self._now_ms()
        index = self._state.map_index(txn)
        counts = reads.counts(txn)
        counters = dict(self.counters) | {
            "entries": self._batcher.entries,
            "commands": self._batcher.commands,
            "recalls_sent": self._coherence.recalls.sent,
            "recalls_told": self._coherence.recalls.told,
        }
        return m.MdsStatus(
            raft=self._log.status(),
            map=index.map,
            usage=self._heartbeats.usage(index),
            sessions=tuple(
                m.SessionInfo(*row, leases=self._coherence.table.held_by(row[0]))
                for row in self._state.sessions.describe(now_ms)
            ),
            inodes=counts.inodes,
            inline_files=counts.inline_files,
            inline_bytes=counts.inline_bytes,
            orphans=counts.orphans,
            garbage_chunks=counts.garbage_chunks,
            counters=counters,
            repair=self._heartbeats.repair_status(index),
            scrubs=self._heartbeats.scrubs(index),
            upkeep=cluster.load_upkeep(txn),
            scrub_period_ms=self._state.scrub_period_ms,
            trashed=counts.trashed,
            absences=self._state.absences,
            stuck=placement.stuck(index.map),
            nearly_full=self._state.nearly_full,
            trashed_bytes=self._state.trash_tally.total_bytes,
        )
