"""Groups of the calling process, kept for a second."""

from shoalfs.fs.credentials import CredentialsCache
from shoalfs.mds.messages import Credentials


class Proc:
    def __init__(self):
        self.groups = {7: {4, 3}}
        self.asked = 0
        self.now = 0.0

    def groups_of(self, pid):
        self.asked += 1
        if pid not in self.groups:
            raise FileNotFoundError(pid)
        return self.groups[pid]

    def cache(self):
        return CredentialsCache(self.groups_of, lambda: self.now)


def test_groups_are_read_once_a_second():
    proc = Proc()
    cache = proc.cache()
    assert cache.of(7, 1000, 100) == Credentials(1000, 100, (3, 4))
    proc.groups[7] = {9}
    assert cache.of(7, 1000, 100).groups == (3, 4)
    assert proc.asked == 1
    proc.now = 1.0
    assert cache.of(7, 1000, 100).groups == (9,)


def test_root_and_its_groups_are_not_looked_up():
    proc = Proc()
    cache = proc.cache()
    assert cache.of(7, 0, 0) == Credentials(0, 0)
    assert cache.of(7, 0, 5) == Credentials(0, 5)
    assert proc.asked == 0


def test_a_process_that_is_gone_has_no_supplementary_groups():
    assert Proc().cache().of(99, 1000, 100) == Credentials(1000, 100)


def test_a_recycled_pid_of_another_user_is_not_taken_for_the_old_one():
    proc = Proc()
    cache = proc.cache()
    cache.of(7, 1000, 100)
    proc.groups[7] = {8}
    assert cache.of(7, 1001, 100).groups == (8,)


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("shoalfs.fs.credentials._ENTRIES_MAX", 2)
    proc = Proc()
    proc.groups = {pid: {pid} for pid in range(5)}
    cache = proc.cache()
    for pid in range(5):
        cache.of(pid, 1000, 100)
    assert proc.asked == 5
    cache.of(0, 1000, 100)
    assert proc.asked == 6, "the oldest was dropped"
