"""``python server_counters.py CONFIG ADDRESS``: what the chunkserver there has counted, as JSON."""

import json
import sys

from shoalfs.chunkserver.client import ChunkClient
from shoalfs.fs.cli.cluster import Operator, call, locate


def main(config: str, address: str) -> None:
    async def ask(operator: Operator) -> dict[str, int]:
        return (await ChunkClient(operator.network).status(address)).counters

    print(json.dumps(call(locate(None, config, None), ask)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
