import pytest
from trio.testing import MockClock

from chunkserver_support import Rig


@pytest.fixture
def make_rig(tmp_path):
    """Makes rigs, and closes what is still open at the end."""
    rigs: list[Rig] = []

    def make(**options) -> Rig:
        rigs.append(Rig(tmp_path / f"index-{len(rigs)}", **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.disk.kill()
        rig.store._index.abandon()


@pytest.fixture
def rig(make_rig):
    return make_rig()


@pytest.fixture
def patient_clock():
    """Jumps ahead when nothing happens, but gives worker threads, which it cannot see, some real time first."""
    return MockClock(autojump_threshold=0.03)
