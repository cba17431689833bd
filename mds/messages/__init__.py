"""What the metadata service is asked and what it answers. Pure: data only.

Two families:

* **Reads** (:mod:`~shoalfs.mds.messages.reads`, and what operators ask) are one method each. The leader answers them
  from its store, without Raft.
* **Mutations** (:mod:`~shoalfs.mds.messages.operations`) travel together: a :class:`Mutate` carries a list of
  :class:`Command`, each an operation number (:class:`Op`), the raw bytes of its request struct, and the (slot,
  sequence) that makes it apply at most once. The leader copies those raw bytes into the Raft entry, so what a client
  encoded is what every node applies.

Times are integers in nanoseconds since the epoch. Names are bytes (POSIX knows no encoding). Lists are tuples.

Everybody imports from here: ``from shoalfs.mds import messages as m``.
"""

from shoalfs.mds.messages.cluster import *
from shoalfs.mds.messages.heartbeat import *
from shoalfs.mds.messages.leases import *
from shoalfs.mds.messages.methods import *
from shoalfs.mds.messages.namespace import *
from shoalfs.mds.messages.operations import *
from shoalfs.mds.messages.operators import *
from shoalfs.mds.messages.reads import *
from shoalfs.mds.messages.records import *
