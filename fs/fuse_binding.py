"""The one place where pyfuse3 is imported: after the compiled part, which has to stand in front of it."""

from shoalfs.fs import native  # isort: skip - the order is the point

import pyfuse3  # isort: skip

__all__ = ["native", "pyfuse3"]
