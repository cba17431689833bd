"""The chunkserver: stores immutable, checksummed chunks on one or more targets (disks)."""
