"""shoalfs: a POSIX parallel filesystem for machine-learning clusters.

The code lives in the checkout's top-level folders ``fs``, ``mds``, ``chunkserver`` and ``transport``; the links
beside this file make them ``shoalfs.fs`` and so on. Import them by that name only.
"""

__version__ = "0.1.0"
