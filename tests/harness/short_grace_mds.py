"""A metadata node whose garbage is collected after a grace that is shorter than a configuration may say.

``python short_grace_mds.py CONFIG GRACE_MS``. The lower bound in the configuration protects readers with old extent
maps; a test that waits for space to come back has none.
"""

import sys
from dataclasses import replace
from functools import partial

from shoalfs.mds import server
from shoalfs.mds.cli import server_options
from shoalfs.transport import daemon
from shoalfs.transport.carrier import Carriers
from shoalfs.transport.config import load

if __name__ == "__main__":
    daemon.set_up_logging("info")
    chosen = replace(server_options(load(sys.argv[1])), garbage_grace_ms=int(sys.argv[2]))
    daemon.run(partial(server.run, chosen, Carriers.standard()), daemon.Readiness.from_environment())
