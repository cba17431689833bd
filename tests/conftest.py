"""What all tiers share: in CI the random choices of hypothesis are always the same ones.

A run in CI says whether this commit is good, so it must not depend on luck. Everywhere else each run tries other
examples.
"""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
