"""Every bound in the system, with its unit in its name and its reason beside it.

The relations between bounds that the code relies on are asserted at the end.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- POSIX -----------------------------------------------------------------------------------------------------------
NAME_BYTES_MAX: Final = 255  # Linux NAME_MAX; also 1 + 8 + 255 fits LMDB's key limit of 511
PATH_BYTES_MAX: Final = 4095  # Linux PATH_MAX without the NUL; a symlink's target may be this long
TIME_NS_MIN: Final = -(1 << 31) * 1_000_000_000  # what ext4 can store: 1901 to 2446; times beyond are set to these
TIME_NS_MAX: Final = 0x3_7FFF_FFFF * 1_000_000_000
LINK_COUNT_MAX: Final = 1_000_000  # EMLINK beyond; a u32 in the record, ext4 stops at 65,000
FILE_SIZE_BYTES_MAX: Final = 16 * 1024 * 1024 * MIB  # 16 TiB: EFBIG beyond, as ext4
XATTR_NAME_BYTES_MAX: Final = 255  # Linux XATTR_NAME_MAX
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB  # Linux XATTR_SIZE_MAX
XATTR_TOTAL_BYTES_MAX: Final = 64 * KIB + 255  # of one inode, with names: one value of the longest kind fits
ACL_BYTES_MAX: Final = 4 * KIB  # one page, as Linux takes from FUSE: 511 entries; it lies in the inode record
GROUPS_MAX: Final = 1024  # supplementary groups that a request may assert; Linux allows 65,536, NFS sends 16

# --- layout ----------------------------------------------------------------------------------------------------------
BLOCK_BYTES: Final = 64 * KIB  # the unit of checksums: what a reader of one byte has to fetch and verify
CHUNK_BYTES_MIN: Final = 64 * KIB
CHUNK_BYTES_MAX: Final = 64 * MIB
CHUNK_BYTES_DEFAULT: Final = 4 * MIB
INLINE_BYTES_MAX: Final = 65_512  # sixteen LMDB pages, less the page header and the seal of the record
INLINE_BYTES_DEFAULT: Final = 20_456  # five LMDB pages; see docs/decisions/0017-five-pages-inline.md
EXTENTS_PER_COMMIT_MAX: Final = 1024
CREATE_EXTENTS_MAX: Final = 64  # that a file is made with: a file of 1 MiB in the smallest chunks has 16
CLONE_EXTENTS_MAX: Final = 1_024  # made by one command, so that cloning a huge file stalls nobody
MERGED_EXTENTS_MAX: Final = 256  # that become one, in one command; with the hashes of 32 fragments each it is 150 KiB
MERGED_BYTES_MAX: Final = 1 << 20  # small pieces of a file become one of at most so much
MERGES_QUEUED_MAX: Final = 64
EXTENTS_PER_FILE_MAX: Final = 1 << 22  # 16 TiB of default chunks; EFBIG beyond, as XFS
EXTENT_ROWS_MAX: Final = 4_096  # removed by one command, so that cutting a file of a million pieces stalls nobody
PGS_PER_TARGET: Final = 16  # groups a target leads: enough to spread, few enough to keep the map in one message
REPLICAS_MAX: Final = 8  # of a chunk
FRAGMENTS_MAX: Final = 32  # of a chunk, data and parity: as many hashes are in each of its extents
POOLS_MAX: Final = 16

# --- wire ------------------------------------------------------------------------------------------------------------
CONTROL_BYTES_MAX: Final = 1 * MIB  # msgpack part of a frame
MAP_BYTES_MAX: Final = CONTROL_BYTES_MAX // 2  # a pool that would make the cluster map larger is refused
PAYLOAD_BYTES_MAX: Final = CHUNK_BYTES_MAX + BLOCK_BYTES  # raw part of a frame
HELLO_BYTES_MAX: Final = 4 * KIB  # all that a peer may send before it is known
HELLO_TIMEOUT_MS: Final = 5_000
CONNECTIONS_MAX: Final = 4_096  # per listener; further ones are closed at once and counted
CREDITS_DEFAULT: Final = 256  # requests in flight per connection
CREDITS_MAX: Final = 65_535
PAYLOAD_IN_FLIGHT_BYTES_MAX: Final = 256 * MIB  # per listener: request payloads that are held at one time
ERROR_TEXT_BYTES_MAX: Final = 512
PAGE_BYTES: Final = 4 * KIB  # of memory; no disk asks for more where it takes bytes from there
ALIGNED_PAYLOAD_BYTES_MIN: Final = 1 * MIB  # such a payload begins where a page does
RECEIVE_SCRATCH_BYTES: Final = (
    96 * KIB
)  # per connection; frames up to half are received many at a time, a block at once
SEND_QUEUED_BYTES_MAX: Final = 8 * MIB  # unsent, per connection: beyond, notifications wait; if answers, so do requests
NOTIFIES_QUEUED_MAX: Final = 1_024  # one-way messages of a connection that wait for their handler
STALL_TIMEOUT_MS: Final = 30_000  # a connection that is inside a frame must move a byte in this time
DIAL_TIMEOUT_MS: Final = 5_000  # connect, TLS handshake and hello together
REDIAL_MS_MIN: Final = 50  # pause after the first failed dial; it doubles up to the longest
REDIAL_MS_MAX: Final = 2_000  # a peer that is back is found within this time
TCP_USER_TIMEOUT_MS: Final = 20_000  # unacknowledged bytes older than this break the connection (tcp(7))
TCP_KEEPALIVE_IDLE_S: Final = 10
TCP_KEEPALIVE_INTERVAL_S: Final = 5
TCP_KEEPALIVE_PROBES: Final = 3  # an idle connection to a dead host is noticed after 10 + 3 * 5 s
RDMA_SETUP_BYTES_MAX: Final = 1_024  # one message of the set-up; before the hello
RDMA_PROBE_MS: Final = 2_000  # a verbs path that carries nothing in this time is not used
RDMA_CREDITS: Final = 32  # messages on the way in one direction: receives posted for one peer
RDMA_CREDITS_KEPT: Final = 4  # of these, for giving back credits and slots
RDMA_MESSAGE_BYTES: Final = 4 * KIB  # a receive buffer: header and what rides in the message
RDMA_BULK_SLOTS: Final = 8  # per direction; 2 MiB on the way fill 100 Gbit/s at 160 us round trip
RDMA_BULK_SLOT_BYTES: Final = 256 * KIB  # 15 us of Python for each: not the limit below 16 GB/s
RDMA_BULK_BYTES_MIN: Final = 8 * KIB  # less rides in messages, whose bytes cost no second operation
RDMA_SIGNAL_EVERY: Final = 8  # sends for one completion
RDMA_CONNECTIONS_MAX: Final = 128  # per process: 4.5 MiB of registered memory each; further peers use TCP
LINKS_TOLD_MAX: Final = 1_000  # connections that one answer describes; a name and a reason are 600 bytes at most
LINK_REASON_CHARS_MAX: Final = 200
RDMA_REST_MS: Final = 60_000  # so long "auto" leaves a place to TCP after verbs to it broke or did not carry
RDMA_LINGER_MS: Final = 2_000  # a closed connection waits so long until the peer has what it was sent
LISTEN_BACKLOG: Final = 1_024
ACCEPT_PAUSE_MS: Final = 100  # after the process ran out of descriptors
REQUEST_TIMEOUT_MS_DEFAULT: Final = 10_000
REQUEST_TIMEOUT_MS_MAX: Final = 600_000

# --- metadata service ------------------------------------------------------------------------------------------------
ENTRY_BYTES_MAX: Final = 512 * KIB  # one Raft entry; pysyncobj's fragmentation starts above its 1 MiB batch size
ENTRY_COMMANDS_MAX: Final = 1024
ENTRIES_IN_FLIGHT_MAX: Final = 2
LOG_SEGMENT_BYTES: Final = 16 * MIB  # the log is deleted by whole segments; read back in 10 ms each
LOG_BYTES_MAX: Final = 512 * MIB  # entries in memory: two checkpoints of the store (256 MiB); Overloaded beyond
LOG_BEHIND_BYTES_MAX: Final = 64 * MIB  # kept for members that are behind; further behind needs a snapshot
LOG_BEHIND_ENTRIES_MAX: Final = 50_000  # likewise, at most 5 s of small entries
APPEND_BYTES_MAX: Final = 1 * MIB  # entries in one message to a follower
APPEND_ENTRIES_MAX: Final = 1024  # likewise
APPEND_IN_FLIGHT_MAX: Final = 64  # messages with entries on the way to one follower
APPEND_IN_FLIGHT_BYTES_MAX: Final = 8 * MIB  # likewise: 1 GiB/s at 8 ms round trip with both syncs
LOG_SYNC_MS_MAX: Final = 10_000  # a disk that syncs for longer has failed; the node ends, another may lead
NODE_MAX: Final = 255  # numbers of metadata nodes, of which none is given twice
ADDRESS_BYTES_MAX: Final = 262  # tcp:, a host name of 253 bytes and a port
MEMBERS_MAX: Final = 15  # of the metadata group, learners included; more voters only make it slower
PROMOTE_LAG_ENTRIES_MAX: Final = 1_024  # a learner that lacks no more than this votes; it has them in milliseconds
LEADER_TRANSFER_MS_MAX: Final = 2_000  # mutations wait for so long for the next leader to have everything
SNAPSHOT_CHUNK_BYTES: Final = 1 * MIB  # one piece of a snapshot: 8 ms of a 1 Gbit/s link
SNAPSHOT_LEASE_MS: Final = 60_000  # a snapshot that its follower does not ask for any more is removed after this
SNAPSHOTS_KEPT_MAX: Final = 2  # copies of the store on one node at a time; Overloaded beyond
LOST_FOUND: Final = b"lost+found"  # in the root: what fsck finds without a name gets one here
TRASH_RETENTION_MS_MAX: Final = 10 * 365 * 86_400_000
TRASH_LIST_MAX: Final = 1_000  # listed or purged at a time
TRASH_YIELDS_PERCENT: Final = 95  # of a target: so full, a pool lets removed files go before their time
TRASH_YIELDED_PERCENT: Final = 93  # until it will be filled so far
TRASH_YIELD_MS: Final = 5_000  # between two steps of that
TRASH_TALLIED_MAX: Final = 500  # removed files whose sizes are added up in one round of the leader: 5 ms
MEND_ROWS_MAX: Final = 10_000  # changed or compared by one repair
PLANS_MAX: Final = 200  # findings in one request for plans
PATHS_MAX: Final = 10_000  # inodes in one request for their paths
INSPECTIONS_MAX: Final = 4  # checks and plans of repairs at one time, each a process of its own beside the service
INSPECTION_LEASE_MS: Final = 60_000  # one that nobody reads any more is ended after this
INSPECTION_STEP_MS: Final = 500  # it answers after this, with nothing if there is nothing yet
DUMP_PIECE_BYTES: Final = 1 * MIB  # of a dump of all metadata, in one reply
DUMP_LEASE_MS: Final = 60_000  # a dump that nobody reads any more is removed after this
BACKUP_INTERVAL_MS_DEFAULT: Final = 3_600_000
BACKUPS_KEPT_DEFAULT: Final = 24
SNAPSHOT_RETRY_MS: Final = 2_000  # pause after a snapshot that could not be fetched
SNAPSHOT_HELD_BYTES_MAX: Final = 256 * MIB  # log kept for followers that are fetching one; they start again beyond
PEER_QUEUE_MAX: Final = 256  # messages waiting for the connection to one member; dropped and counted beyond
MUTATES_IN_FLIGHT_MAX: Final = 4  # requests of one client; what comes while they are under way shares the next one
SHARED_COMMANDS_MAX: Final = 64  # commands in one of these; their outcomes, below 1 KiB each, fit one reply
COMMAND_OVERHEAD_BYTES: Final = 64  # session, slot, sequence, number and array headers of one command in an entry
COMMAND_BYTES_MAX: Final = 256 * KIB  # one operation; 1024 extents with two receipts each are about 120 KiB
PROPOSALS_QUEUED_MAX: Final = 16_384  # operations that wait for an entry; Overloaded beyond
OUTCOME_BYTES_MAX: Final = 64 * KIB  # the recorded answer of one operation
SESSIONS_MAX: Final = 16_384
CHANGES_TOGETHER_MAX: Final = 64  # of one client, that wait for each other; far below its slots
SLOTS_PER_SESSION: Final = 256  # mutations one session may have in flight; each keeps one recorded answer
SESSION_TTL_MS: Final = 20_000
SESSION_RENEWALS_PER_TTL: Final = 5  # four renewals may be lost
LEASE_TTLS: Final = 0.8  # of the TTL: so long after its last renewal was sent, a client believes in its leases
LEASES_PER_SESSION_MAX: Final = 131_072  # on inodes, and as many on directories: about 20 MB of the leader's memory
RECALLED_PER_MESSAGE_MAX: Final = 4_096  # names and inodes in one invalidation, which then fits any frame
RECALL_ATTEMPT_MS: Final = 2_000  # an invalidation that is not acknowledged in this time is sent again
RECALL_PATIENCE_TTLS: Final = 0.4  # of the TTL: a session that does not acknowledge for so long is ended
WRITE_BACK_TTLS: Final = 0.2  # of the TTL: so long a client tries to commit what is called back, then it says it failed
WRITE_BACK_ATTEMPT_TTLS: Final = 0.3  # of the TTL: a call to write back that is not answered for so long is sent again
GRACE_QUESTION_TTLS: Final = (
    0.25  # of the TTL: so long a question about a file waits for sessions that have not reported
)
OPENS_PER_SESSION_MAX: Final = 1_000_000  # open inodes that one session may hold; ENFILE beyond
LOCKS_PER_SESSION_MAX: Final = 16_384  # told to a new leader in one message; ENOLCK beyond
LOCK_WAITS_PER_SESSION_MAX: Final = 128  # requests that stay at the leader; half of CREDITS_DEFAULT; ENOLCK beyond
LOCK_PARK_MS: Final = 8_000  # below the 10 s in which a client expects an answer
LOCK_GRACE_RETRY_MS: Final = 200  # until a new leader knows all locks
CHUNK_RANGE_MAX: Final = 65_536  # chunk numbers reserved by one request
NEW_FILES_MAX: Final = 1_024  # of one mount, made and not told of
NEW_FILE_MS: Final = 1_000  # a file that is still open is told of after this
CLOSE_MS: Final = 10  # closes of new files within this are committed together
CLOSED_FILES_MAX: Final = 256  # of one mount, closed and not committed; further closes wait for their commit
CLOSED_WAITING_BYTES_MAX: Final = 16 * MIB  # likewise: some tenths of a second of two cores' chunkservers
CLOSED_BYTES_MAX: Final = MIB  # a larger file is committed before its close returns
DIRECTORIES_WRITTEN_MAX: Final = 1_024  # of one mount, with a write lease
INODE_RANGE_MAX: Final = 4_096  # inode numbers reserved by one request
INODE_RANGES_KEPT: Final = 2  # of a session: the one in use, and the one before, of which files are still to be told
READDIR_ENTRIES_MAX: Final = 1_000
LOOKUP_BATCH_MAX: Final = 1_000
FETCH_BATCH_MAX: Final = 256  # files in one FETCH_FILES: 2 MiB of the largest default inline files are two answers
FETCH_EXTENTS_MAX: Final = 4  # of one file that is told in it
LISTING_BYTES_MAX: Final = 768 * KIB  # a page of a listing stops here, so that it fits CONTROL_BYTES_MAX
REAP_EXTENTS_MAX: Final = 1_000  # extents removed by one command, so that deleting a huge file stalls nobody
HEARTBEAT_MS: Final = 1_000
TARGET_DOWN_MS: Final = 6_000  # six lost heartbeats
ORDERS_PER_HEARTBEAT_MAX: Final = 1_000
# More than this share of all chunks, and more than this many, do not become garbage at once without a mistake.
BRAKE_PERCENT_DEFAULT: Final = 5
BRAKE_CHUNKS_MIN: Final = 10_000
INVENTORY_PER_HEARTBEAT_MAX: Final = 1_000  # when nothing is the matter
INVENTORY_HURRIED_MAX: Final = 8_000  # while it is not known what a target lacks: a million chunks in two minutes
INVENTORY_ROWS_MAX: Final = 2 * INVENTORY_HURRIED_MAX  # metadata rows compared for one part of an inventory, 50 ms
LACKS_PER_TARGET_MAX: Final = 4_000  # chunks that a target is known to lack; its inventory waits while so many do
COPIES_ORDERED_MAX: Final = 64  # copies that one target is asked to make at one time
COPIES_PER_REPLY_MAX: Final = 256  # of all targets of one server, so that its orders fit one message
COPY_SOURCES_MAX: Final = 3  # that one order names
LACK_CERTAIN_MS: Final = 2_000  # what was stored while its inventory was under way has been found to be there by then
COPY_SOURCES_PER_ORDER: Final = 12  # on average, where fragments are rebuilt, so that a reply fits one message
COPY_RETRY_MS_MIN: Final = 1_000  # a copy that failed is ordered again after this; it doubles up to the longest
COPY_RETRY_MS_MAX: Final = 60_000
REPAIR_BYTES_PER_S_DEFAULT: Final = 64 * MIB  # read from or written to one target: half of what a hard disk does
EVICTIONS_PER_TARGET_MAX: Final = 4_000  # copies in a place where they do not belong any more that are remembered
TARGET_RETURN_MS: Final = 30_000  # a new leader declares nobody out before: servers may be starting as it is
GROUPS_MOVING_MAX: Final = 32  # placement groups that are moved at one time, unless a copy is missing
GROUPS_REBALANCING_MAX: Final = 4  # of these, only to even out how full targets are
TARGET_OUT_MS_DEFAULT: Final = 600_000  # a target that is down for so long is replaced; longer than a reboot
BAD_REPLICAS_MAX: Final = 1_000  # in one report of a client
SCRUB_PERIOD_MS_DEFAULT: Final = 14 * 24 * 3_600_000
SCRUB_BYTES_PER_S_DEFAULT: Final = 32 * MIB  # of one target; 14 days are then enough for 38 TiB
DAMAGED_REPORTED_MAX: Final = 1_000  # chunks that scrubbing found, in one heartbeat
CHECKPOINT_MS: Final = 30_000  # of the store; bounds how much of the log a recovery from power loss replays
GARBAGE_GRACE_MS_DEFAULT: Final = 900_000  # > 2 x session TTL: a reader with an old extent map still finds its chunk

# --- chunkserver -----------------------------------------------------------------------------------------------------
SEGMENT_BYTES_MAX: Final = 1024 * MIB  # a segment is sealed at this size
TARGET_FULL_PERCENT: Final = 98  # PUT is refused beyond; the rest is for deletes and the index
TARGETS_PER_SERVER_MAX: Final = 64
TARGET_SIZE_BYTES_MAX: Final = 1 << 60  # that an operator may name: 1 EiB; a number of 64 bits goes on the wire
TARGET_ID_MAX: Final = (1 << 32) - 1  # numbers of targets, of which none is given twice
TARGET_PATH_BYTES_MAX: Final = 1024  # of the name of a directory that is added while its server runs
CHUNK_LIST_MAX: Final = 10_000  # ids in one LIST or VERIFY message
DISK_THREADS_PER_TARGET: Final = 8
DISK_CALL_MS_MAX: Final = (
    30_000  # one call to a disk; longer than a loaded disk takes, shorter than a controller retries
)
DISK_STALL_MS: Final = 1_000  # a disk one of whose calls lasts for longer keeps none of those busy that others need
DISK_SHED_MS: Final = (
    5_000  # after this, half of what a request waits by default, who comes to such a disk is turned away
)
STALLED_BYTES_MAX: Final = 32 * MIB  # if so much waits for it: what its server's connections hold is for all its disks
CONDITION_PATIENCE_MS: Final = 500  # a heartbeat waits so long for what disks say of themselves
OPEN_PATIENCE_MS: Final = (
    5_000  # a start waits so long for all targets; below TARGET_DOWN_MS, for the sake of the others
)
INDEX_ROWS_KNOWN_MAX: Final = 65_536  # of one target, remembered for reads that must not wait; about 16 MiB
RECORD_ALIGN_BYTES: Final = 4 * KIB  # a filesystem block: what a punched hole gives back
SEGMENT_FILES_OPEN_MAX: Final = 256  # descriptors that one target keeps for reading sealed segments
INDEX_MAP_BYTES: Final = 256 * 1024 * MIB  # address space for a target's index: 10^9 chunks at about 200 bytes each
SYNC_PERIOD_MS: Final = 5_000  # what nobody asked to sync is on disk after this at the latest
HASH_INLINE_BYTES_MAX: Final = 256 * KIB  # hashed in the event loop (about 20 us); more goes to a thread
PUT_QUEUED_BYTES_MAX: Final = 256 * KIB  # smaller PUTs share a worker thread, larger ones write in parallel
DIRECT_BYTES_MIN: Final = 1 * MIB  # such a chunk is written past the page cache: a disk's latency is small beside it
DIRECT_PUT_THREADS: Final = 2  # of one target, beside the others: one verifies while another writes
READ_INLINE_BYTES_MAX: Final = 256 * KIB  # read in the event loop if it is in the page cache
FORWARDED_BYTES_MAX: Final = 128 * MIB  # that one server passes on at a time; the rest ends with its own disks' work
FORWARD_MAP_MS_MIN: Final = 1_000  # a cluster map that turned out to be old is fetched no more often than this
COPIES_AT_ONCE_MAX: Final = 4  # chunks that one server fetches from others at one time: at most 256 MiB of memory
COPY_TIMEOUT_MS: Final = 60_000  # the largest chunk at 1 MiB/s
BEAT_MS_MIN: Final = 50  # pause between heartbeats when ordered copies are done early
HURRIED_BEAT_MS: Final = 200  # while the metadata service waits for inventories
HEARTBEAT_PATIENCE_MS: Final = 3_000  # one heartbeat looks for the leader so long; half of TARGET_DOWN_MS

# --- client ----------------------------------------------------------------------------------------------------------
FUSE_IO_BYTES_MAX: Final = 1 * MIB  # max_write and max_read
DIRTY_BYTES_DEFAULT: Final = 256 * MIB  # write-behind budget of one mount; writers wait at the limit
READ_CACHE_BYTES_DEFAULT: Final = 256 * MIB
READAHEAD_BYTES_MAX: Final = 16 * MIB
WRITE_BACK_MS: Final = 5_000  # a dirty byte is committed after this at the latest
DIRTY_RUN_COST_BYTES: Final = 256  # what one run of dirty bytes takes besides its bytes, as charged to the budget
UNITS_EXTENTS_MAX: Final = 512  # extents packed into one chunk; at least two units fit one commit
COMMIT_ATTEMPTS_MAX: Final = 8  # one flush meets a changed layout or a stale receipt this often, then it fails
STORE_ATTEMPTS_MAX: Final = 32  # groups tried for one chunk, with pauses between if targets do not answer
TARGET_PATIENCE_MS: Final = 20_000  # a request waits so long in sum for targets that count as up and do not answer
PUTS_IN_FLIGHT_MAX: Final = 16  # chunks of one mount being stored; 64 MiB of default chunks fill a 10 Gbit/s link
GETS_IN_FLIGHT_MAX: Final = 32
GET_MANY_BYTES_MAX: Final = 2 * MIB  # of one GET_MANY: a reader who waits for one of its chunks waits some milliseconds
GET_MANY_CHUNKS_MAX: Final = 256  # likewise; as many files as one FETCH_FILES tells of
GET_MANY_CHUNK_BYTES_MAX: Final = 512 * KIB  # a larger chunk gains nothing from company
REBUILDS_AT_ONCE_MAX: Final = 4  # of one mount: each holds its chunk about twice
FETCH_BYTES_MAX: Final = 1 * MIB  # of one GET: a reader of one block never waits for a whole large chunk
FLUSHES_IN_FLIGHT_MAX: Final = 16  # files that write-back flushes at one time; far below SLOTS_PER_SESSION
TARGET_AVOID_MS: Final = 5_000  # a target that failed is tried last for so long; TARGET_DOWN_MS then settles it
SYNC_CHUNKS_MAX: Final = 1_000  # ids in one SYNC
UNDURABLE_CHUNKS_MAX: Final = 65_536  # of one file: beyond, write-back stores durably so that fsync stays short
EXTENTS_CACHED_MAX: Final = 1 << 18  # of one file, about 60 MB; a larger map is forgotten and fetched by pages
STALE_PAGES_MAX: Final = 16  # extent pages that a busy file may overtake before a read gives up
SCAN_BYTES_MAX: Final = 64 * MIB  # small files of one mount that were fetched before anybody opened them
SCAN_CHUNK_BYTES_MAX: Final = READ_CACHE_BYTES_DEFAULT // 2  # likewise in chunks, which are in the read cache
SCAN_FILES_MAX: Final = 131_072  # files that are remembered for it, by number; as many as the leader leases
FILES_KEPT_MAX: Final = 16_384  # closed files whose extents or unsynced chunks are remembered
INLINE_KEPT_BYTES_MAX: Final = 128 * MIB  # of small files, open or not; beyond, closed files are forgotten
READAHEAD_BYTES_MIN: Final = 256 * KIB  # first window; two FUSE readahead requests of 128 KiB
PREFETCHES_QUEUED_MAX: Final = 64  # readahead beyond is not done: it is a hint
PREFETCHES_IN_FLIGHT_MAX: Final = 8

assert DISK_STALL_MS < TARGET_DOWN_MS
assert 2 * DISK_SHED_MS <= REQUEST_TIMEOUT_MS_DEFAULT
assert STALLED_BYTES_MAX <= PAYLOAD_IN_FLIGHT_BYTES_MAX // 8
assert CONDITION_PATIENCE_MS < HEARTBEAT_MS
assert OPEN_PATIENCE_MS < TARGET_DOWN_MS
assert ALIGNED_PAYLOAD_BYTES_MIN <= DIRECT_BYTES_MIN
assert RECORD_ALIGN_BYTES % PAGE_BYTES == 0
assert HELLO_BYTES_MAX < RECEIVE_SCRATCH_BYTES // 2 < CONTROL_BYTES_MAX
assert CREDITS_DEFAULT <= CREDITS_MAX
assert RDMA_BULK_SLOTS + RDMA_CREDITS_KEPT < RDMA_CREDITS
assert RDMA_SIGNAL_EVERY < RDMA_CREDITS
assert BLOCK_BYTES <= CHUNK_BYTES_MIN <= CHUNK_BYTES_DEFAULT <= CHUNK_BYTES_MAX
assert GET_MANY_CHUNK_BYTES_MAX <= GET_MANY_BYTES_MAX <= PAYLOAD_BYTES_MAX
assert CHUNK_BYTES_MAX <= PAYLOAD_BYTES_MAX <= PAYLOAD_IN_FLIGHT_BYTES_MAX
assert FORWARDED_BYTES_MAX + CHUNK_BYTES_MAX <= PAYLOAD_IN_FLIGHT_BYTES_MAX  # or servers wait for one another
assert INLINE_BYTES_DEFAULT <= INLINE_BYTES_MAX < COMMAND_BYTES_MAX <= ENTRY_BYTES_MAX < CONTROL_BYTES_MAX
assert ENTRY_BYTES_MAX < APPEND_BYTES_MAX <= APPEND_IN_FLIGHT_BYTES_MAX < LOG_BEHIND_BYTES_MAX < LOG_BYTES_MAX
assert LOG_BEHIND_BYTES_MAX < SNAPSHOT_HELD_BYTES_MAX < LOG_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX < COMMAND_BYTES_MAX
assert TRASH_YIELDED_PERCENT < TRASH_YIELDS_PERCENT < TARGET_FULL_PERCENT  # what is let go is gone after a grace only
assert OUTCOME_BYTES_MAX < CONTROL_BYTES_MAX
assert WRITE_BACK_TTLS < WRITE_BACK_ATTEMPT_TTLS < RECALL_PATIENCE_TTLS < LEASE_TTLS < 1
assert GARBAGE_GRACE_MS_DEFAULT > 2 * SESSION_TTL_MS
assert 2 * UNITS_EXTENTS_MAX <= EXTENTS_PER_COMMIT_MAX
assert BLOCK_BYTES <= READAHEAD_BYTES_MIN <= READAHEAD_BYTES_MAX < READ_CACHE_BYTES_DEFAULT
