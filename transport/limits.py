"""Every bound in the system, with its unit in its name and its reason beside it.

The relations between bounds that the code relies on are asserted at the end.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- POSIX -----------------------------------------------------------------------------------------------------------
NAME_BYTES_MAX: Final = 255  # Linux NAME_MAX; also 1 + 8 + 255 fits LMDB's key limit of 511
PATH_BYTES_MAX: Final = 4095  # Linux PATH_MAX without the NUL; a symlink's target may be this long
LINK_COUNT_MAX: Final = 1_000_000  # EMLINK beyond; a u32 in the record, ext4 stops at 65,000
FILE_SIZE_BYTES_MAX: Final = 16 * 1024 * 1024 * MIB  # 16 TiB: EFBIG beyond, as ext4
XATTR_NAME_BYTES_MAX: Final = 255  # Linux XATTR_NAME_MAX
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB  # Linux XATTR_SIZE_MAX
XATTR_TOTAL_BYTES_MAX: Final = 64 * KIB  # of one inode: listxattr answers with at most 64 KiB
GROUPS_MAX: Final = 1024  # supplementary groups that a request may assert; Linux allows 65,536, NFS sends 16

# --- layout ----------------------------------------------------------------------------------------------------------
BLOCK_BYTES: Final = 64 * KIB  # the unit of checksums: what a reader of one byte has to fetch and verify
CHUNK_BYTES_MIN: Final = 64 * KIB
CHUNK_BYTES_MAX: Final = 64 * MIB
CHUNK_BYTES_DEFAULT: Final = 4 * MIB
INLINE_BYTES_MAX: Final = 16_368 - 112  # one LMDB overflow run of four pages, less the record's own header and hash
INLINE_BYTES_DEFAULT: Final = 4_064  # chosen by bench/inline_curve; see docs/performance.md
EXTENTS_PER_COMMIT_MAX: Final = 1024
EXTENTS_PER_FILE_MAX: Final = 1 << 22  # 16 TiB of default chunks; EFBIG beyond
PGS_PER_TARGET: Final = 16  # groups a target leads: enough to spread, few enough to keep the map in one message

# --- wire ------------------------------------------------------------------------------------------------------------
CONTROL_BYTES_MAX: Final = 1 * MIB  # msgpack part of a frame
PAYLOAD_BYTES_MAX: Final = CHUNK_BYTES_MAX + BLOCK_BYTES  # raw part of a frame
HELLO_BYTES_MAX: Final = 4 * KIB  # all that a peer may send before it is known
HELLO_TIMEOUT_MS: Final = 5_000
CONNECTIONS_MAX: Final = 4_096  # per listener; further ones are closed at once and counted
CREDITS_DEFAULT: Final = 256  # requests in flight per connection
PAYLOAD_IN_FLIGHT_BYTES_MAX: Final = 256 * MIB  # per listener: request payloads that are held at one time
ERROR_TEXT_BYTES_MAX: Final = 512
REQUEST_TIMEOUT_MS_DEFAULT: Final = 10_000
REQUEST_TIMEOUT_MS_MAX: Final = 600_000

# --- metadata service ------------------------------------------------------------------------------------------------
ENTRY_BYTES_MAX: Final = 512 * KIB  # one Raft entry; pysyncobj's fragmentation starts above its 1 MiB batch size
ENTRY_COMMANDS_MAX: Final = 1024
ENTRIES_IN_FLIGHT_MAX: Final = 2
COMMAND_BYTES_MAX: Final = 256 * KIB  # one operation; 1024 extents with two receipts each are about 120 KiB
PROPOSALS_QUEUED_MAX: Final = 16_384  # operations that wait for an entry; Overloaded beyond
OUTCOME_BYTES_MAX: Final = 64 * KIB  # the recorded answer of one operation
SESSIONS_MAX: Final = 16_384
SLOTS_PER_SESSION: Final = 256  # mutations one session may have in flight; each keeps one recorded answer
SESSION_TTL_MS: Final = 20_000
SESSION_RENEW_MS: Final = 4_000  # a fifth of the TTL: four renewals may be lost
OPENS_PER_SESSION_MAX: Final = 1_000_000  # open inodes that one session may hold; ENFILE beyond
CHUNK_RANGE_MAX: Final = 65_536  # chunk numbers reserved by one request
READDIR_ENTRIES_MAX: Final = 1_000
LOOKUP_BATCH_MAX: Final = 1_000
LISTING_BYTES_MAX: Final = 768 * KIB  # a page of a listing stops here, so that it fits CONTROL_BYTES_MAX
REAP_EXTENTS_MAX: Final = 1_000  # extents removed by one command, so that deleting a huge file stalls nobody
HEARTBEAT_MS: Final = 1_000
TARGET_DOWN_MS: Final = 6_000  # six lost heartbeats
ORDERS_PER_HEARTBEAT_MAX: Final = 1_000
INVENTORY_PER_HEARTBEAT_MAX: Final = 1_000
GARBAGE_GRACE_MS_DEFAULT: Final = 900_000  # > 2 x session TTL: a reader with an old extent map still finds its chunk

# --- chunkserver -----------------------------------------------------------------------------------------------------
SEGMENT_BYTES_MAX: Final = 1024 * MIB  # a segment is sealed at this size
TARGET_FULL_PERCENT: Final = 98  # PUT is refused beyond; the rest is for deletes and the index
TARGETS_PER_SERVER_MAX: Final = 64
CHUNK_LIST_MAX: Final = 10_000  # ids in one LIST or VERIFY message
DISK_THREADS_PER_TARGET: Final = 8

# --- client ----------------------------------------------------------------------------------------------------------
FUSE_IO_BYTES_MAX: Final = 1 * MIB  # max_write and max_read
DIRTY_BYTES_DEFAULT: Final = 256 * MIB  # write-behind budget of one mount; writers wait at the limit
READ_CACHE_BYTES_DEFAULT: Final = 256 * MIB
READAHEAD_BYTES_MAX: Final = 16 * MIB
WRITE_BACK_MS: Final = 5_000  # a dirty byte is committed after this at the latest

assert HELLO_BYTES_MAX < CONTROL_BYTES_MAX
assert BLOCK_BYTES <= CHUNK_BYTES_MIN <= CHUNK_BYTES_DEFAULT <= CHUNK_BYTES_MAX
assert CHUNK_BYTES_MAX <= PAYLOAD_BYTES_MAX <= PAYLOAD_IN_FLIGHT_BYTES_MAX
assert INLINE_BYTES_DEFAULT <= INLINE_BYTES_MAX < COMMAND_BYTES_MAX <= ENTRY_BYTES_MAX < CONTROL_BYTES_MAX
assert XATTR_VALUE_BYTES_MAX < COMMAND_BYTES_MAX
assert OUTCOME_BYTES_MAX < CONTROL_BYTES_MAX
assert SESSION_RENEW_MS * 4 <= SESSION_TTL_MS
assert GARBAGE_GRACE_MS_DEFAULT > 2 * SESSION_TTL_MS
