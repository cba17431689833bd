"""What a mount keeps under leases, and the one rule: a late answer brings nothing back."""

from random import Random

import pytest

from shoalfs.fs import leases
from shoalfs.fs.effects import doubtful, effects
from shoalfs.fs.leases import UNKNOWN, LeaseCache
from shoalfs.mds import messages as m
from shoalfs.mds.messages import ROOT_CREDENTIALS as ROOT
from shoalfs.transport.ids import InodeId

DIR, FILE, OTHER = InodeId(10), InodeId(11), InodeId(12)


def inode(ino, version=1):
    return m.Inode(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, version=version, data_version=version)


@pytest.fixture
def cache():
    return LeaseCache()


def test_names_that_exist_that_do_not_and_that_are_not_known(cache):
    asking = cache.ask()
    cache.learn_name(asking, DIR, b"f", FILE)
    cache.learn_name(asking, DIR, b"absent", None)
    assert cache.name(DIR, b"f") == FILE
    assert cache.name(DIR, b"absent") is None
    assert cache.name(DIR, b"else") is UNKNOWN
    assert cache.name(OTHER, b"f") is UNKNOWN


def test_an_older_record_never_replaces_a_newer_one(cache):
    asking = cache.ask()
    cache.learn_inode(asking, inode(FILE, 5))
    cache.learn_inode(asking, inode(FILE, 4))
    assert cache.inode(FILE).version == 5


def test_an_answer_that_was_asked_for_before_something_was_dropped_does_not_bring_it_back(cache):
    early = cache.ask()
    cache.learn_inode(early, inode(FILE))
    cache.learn_name(early, DIR, b"f", FILE)
    cache.drop([(DIR, b"f")], [FILE])
    cache.learn_inode(early, inode(FILE))
    cache.learn_name(early, DIR, b"f", FILE)
    assert cache.inode(FILE) is None
    assert cache.name(DIR, b"f") is UNKNOWN
    cache.learn_name(early, DIR, b"g", OTHER)
    cache.learn_inode(early, inode(OTHER))
    assert (cache.name(DIR, b"g"), cache.inode(OTHER).ino) == (OTHER, OTHER), "of the rest nothing was said"
    late = cache.ask()
    cache.learn_inode(late, inode(FILE))
    assert cache.inode(FILE) is not None


def test_a_whole_directory_and_everything_can_be_dropped(cache):
    early = cache.ask()
    cache.learn_name(early, DIR, b"f", FILE)
    cache.learn_name(early, OTHER, b"f", FILE)
    cache.drop(directories=[DIR])
    cache.learn_name(early, DIR, b"g", FILE)
    assert (cache.name(DIR, b"f"), cache.name(DIR, b"g")) == (UNKNOWN, UNKNOWN)
    assert cache.name(OTHER, b"f") == FILE
    cache.drop_all()
    cache.learn_inode(early, inode(FILE))
    cache.learn_name(early, OTHER, b"f", FILE)
    assert cache.inode(FILE) is None
    assert cache.name(OTHER, b"f") is UNKNOWN


def test_a_mutation_moves_names_only_where_names_are_leased(cache):
    asking = cache.ask()
    cache.moved_name(asking, DIR, b"f", FILE)
    assert cache.name(DIR, b"f") is UNKNOWN
    cache.learn_name(asking, DIR, b"g", None)
    cache.moved_name(asking, DIR, b"f", FILE)
    assert cache.name(DIR, b"f") == FILE


def test_it_is_bounded_by_whole_directories(cache, monkeypatch):
    monkeypatch.setattr(leases, "NAMES_MAX", 10)
    for number in range(6):
        for directory in (DIR, FILE, OTHER):
            asking = cache.ask()
            cache.learn_name(asking, directory, b"%d" % number, FILE)
            cache.answered(asking)
    known = sum(
        cache.name(directory, b"%d" % number) is not UNKNOWN for directory in (DIR, FILE, OTHER) for number in range(6)
    )
    assert known <= 10
    assert cache.name(OTHER, b"5") == FILE


def test_one_directory_alone_is_bounded(cache, monkeypatch):
    monkeypatch.setattr(leases, "NAMES_MAX", 10)
    asking = cache.ask()
    for number in range(100):
        cache.learn_name(asking, DIR, b"%d" % number, FILE)
        cache.moved_name(asking, DIR, b"made %d" % number, FILE)
        assert sum(cache.name(DIR, b"%d" % each) is not UNKNOWN for each in range(100)) <= 10
    cache.learn_all(asking, DIR)
    assert cache.name(DIR, b"0") is UNKNOWN, "what was forgotten of it is not taken for absent"
    assert not cache.is_complete(DIR)


def test_a_directory_that_is_forgotten_while_it_is_listed_is_not_complete_afterwards(cache, monkeypatch):
    monkeypatch.setattr(leases, "NAMES_MAX", 10)
    listing, other = cache.ask(), cache.ask()
    for number in range(5):
        cache.learn_name(listing, DIR, b"%d" % number, FILE)
    for number in range(8):
        cache.learn_name(other, OTHER, b"%d" % number, FILE)
    assert cache.name(DIR, b"0") is UNKNOWN, "the oldest makes room"
    cache.learn_name(listing, DIR, b"5", FILE)
    cache.learn_all(listing, DIR)
    assert cache.name(DIR, b"0") is UNKNOWN, "it exists, and was said not to"


def test_a_directory_that_is_filled_is_kept_beyond_the_bound_and_others_as_before(cache, monkeypatch):
    monkeypatch.setattr(leases, "NAMES_MAX", 10)
    monkeypatch.setattr(leases, "NAMES_FILLED_MAX", 50)
    asking = cache.ask()
    cache.learn_name(asking, DIR, b"first", FILE)
    cache.learn_all(asking, DIR)
    cache.filled.add(DIR)
    for number in range(49):
        cache.moved_name(asking, DIR, b"%d" % number, FILE)
        cache.learn_name(asking, OTHER, b"%d" % (number % 8), FILE)
    assert cache.name(DIR, b"0") == FILE
    assert cache.is_complete(DIR)
    assert cache.name(OTHER, b"7") == FILE
    cache.moved_name(asking, DIR, b"one more", FILE)
    assert not cache.is_complete(DIR)
    assert cache.name(DIR, b"0") is UNKNOWN
    assert cache.name(OTHER, b"7") == FILE


# --- effects of mutations --------------------------------------------------------------------------------------------


def test_what_mutations_of_this_mount_mean():
    name, new = (DIR, b"f"), (OTHER, b"g")
    made = effects(m.Create(ROOT, *name, 0o644, True), m.Created(inode(FILE), True))
    assert (made.names, made.stale, made.told) == ({name: FILE}, {DIR}, (inode(FILE),))
    found = effects(m.Create(ROOT, *name, 0o644, False), m.Created(inode(FILE), False))
    assert (found.names, found.stale) == ({name: FILE}, set())
    gone = effects(m.Unlink(ROOT, *name), m.Unlinked(inode(FILE)))
    assert (gone.names, gone.stale) == ({name: None}, {DIR})
    moved = effects(m.Rename(ROOT, *name, *new), m.Renamed(inode(FILE), None))
    assert (moved.names, moved.stale) == ({name: None, new: FILE}, {DIR, OTHER})
    exchange = m.Rename(ROOT, *name, *new, int(m.RenameFlags.EXCHANGE))
    assert effects(exchange, m.Renamed(inode(FILE), inode(InodeId(13)))).names == {name: 13, new: FILE}
    assert effects(m.Rename(ROOT, *name, *new), m.Renamed(inode(FILE), inode(InodeId(13)))).names[name] is None
    assert effects(m.Rename(ROOT, *name, *new), m.Renamed(inode(FILE), inode(FILE))).names == {}
    assert effects(m.Link(ROOT, FILE, *new), m.Entry(inode(FILE))).names == {new: FILE}
    assert effects(m.CommitInline(FILE, ()), m.Committed(inode(FILE), 0, 1)).told == (inode(FILE),)
    assert doubtful(m.Rename(ROOT, *name, *new)) == ({name, new}, {DIR, OTHER})
    assert doubtful(m.SetAttr(ROOT, FILE)) == (set(), {FILE})


def test_of_a_directory_that_was_listed_whole_absent_names_are_known():
    cache = LeaseCache()
    asking = cache.ask()
    cache.learn_name(asking, DIR, b"a", FILE)
    cache.drop([(DIR, b"c")])  # another mount changed it while the listing was on its way
    cache.learn_all(asking, DIR)
    cache.answered(asking)
    assert cache.name(DIR, b"a") == FILE
    assert cache.name(DIR, b"b") is None
    assert cache.name(DIR, b"n" * 255) is None
    assert cache.name(DIR, b"n" * 256) is UNKNOWN  # the leader says that it is too long, not that it is absent
    assert cache.name(DIR, b"c") is UNKNOWN
    cache.drop([(DIR, b"b")])
    assert cache.name(DIR, b"b") is UNKNOWN
    asking = cache.ask()
    cache.learn_name(asking, DIR, b"b", OTHER)
    cache.answered(asking)
    assert cache.name(DIR, b"b") == OTHER
    cache.drop([(DIR, b"a")])
    assert cache.name(DIR, b"a") is UNKNOWN
    cache.drop(directories=[DIR])
    assert cache.name(DIR, b"z") is UNKNOWN


def test_a_listing_during_which_the_directory_was_called_back_makes_nothing_complete():
    for drop in (lambda cache: cache.drop(directories=[DIR]), lambda cache: cache.drop_all()):
        cache = LeaseCache()
        asking = cache.ask()
        drop(cache)
        cache.learn_all(asking, DIR)
        assert cache.name(DIR, b"b") is UNKNOWN


def test_too_many_doubtful_names_end_the_completeness_of_a_directory():
    cache = LeaseCache()
    asking = cache.ask()
    cache.learn_all(asking, DIR)
    cache.answered(asking)
    cache.drop([(DIR, b"%d" % number) for number in range(leases.DOUBTFUL_MAX)])
    assert cache.is_complete(DIR)
    cache.drop([(DIR, b"one more")])
    assert not cache.is_complete(DIR)
    assert cache.name(DIR, b"b") is UNKNOWN


@pytest.mark.parametrize("seed", range(20))
def test_many_are_learned_as_one_by_one(seed):
    chance = Random(seed)
    gone = [[], []]
    caches = [LeaseCache(told.append, lambda: None, lambda *name, told=told: told.append(name)) for told in gone]
    for _ in range(60):
        asking = [cache.ask() for cache in caches]
        directory = InodeId(chance.randrange(3))
        inodes = [inode(InodeId(chance.randrange(100, 140)), chance.randrange(1, 4)) for _ in range(6)]
        names = [(b"%d" % chance.randrange(12), each.ino) for each in inodes]
        dropped = [(directory, name) for name, _ in chance.sample(names, chance.choice((0, 0, 1)))]
        lost = [each.ino for each in chance.sample(inodes, chance.choice((0, 0, 1)))]
        whole = [directory] if chance.random() < 0.1 else []
        everything = chance.random() < 0.05
        for cache in caches:
            cache.drop(dropped, lost, whole)
            if everything:
                cache.drop_all()
        for name, ino in names:
            caches[0].learn_name(asking[0], directory, name, ino)
        for each in inodes:
            caches[0].learn_inode(asking[0], each)
        caches[1].learn_names(asking[1], directory, names)
        caches[1].learn_inodes(asking[1], inodes)
        for cache, one in zip(caches, asking, strict=True):
            cache.answered(one)
        assert gone[0] == gone[1]
        assert caches[0]._inodes == caches[1]._inodes
        assert caches[0]._names == caches[1]._names
        assert caches[0]._names_count == caches[1]._names_count
        assert caches[0]._complete == caches[1]._complete
        if chance.random() < 0.3:
            for cache in caches:
                cache.learn_all(cache.ask(), directory)


@pytest.mark.parametrize("seed", range(20))
def test_the_names_of_a_directory_are_counted_as_long_as_all_are_certain(seed):
    chance, cache, counted = Random(seed), LeaseCache(), 0
    for _ in range(300):
        asking, directory = cache.ask(), InodeId(chance.randrange(2))
        name = b"%d" % chance.randrange(8)
        if chance.random() < 0.1:
            cache.drop([(directory, name)])
        if chance.random() < 0.02:
            cache.drop(directories=[directory])
        if chance.random() < 0.01:
            cache.drop_all()
        ino = InodeId(chance.randrange(100, 110)) if chance.random() < 0.6 else None
        cache.learn_name(asking, directory, name, ino)
        if chance.random() < 0.1:
            cache.learn_all(asking, directory)
        cache.answered(asking)
        all_names = {b"%d" % number: cache.name(directory, b"%d" % number) for number in range(8)}
        if not cache.is_complete(directory) or UNKNOWN in all_names.values():
            assert cache.count_in(directory) is None
        else:
            counted += 1
            assert cache.count_in(directory) == sum(ino is not None for ino in all_names.values())
    assert counted > 20


def test_many_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr(leases, "INODES_MAX", 20)
    monkeypatch.setattr(leases, "NAMES_MAX", 30)
    gone = []
    cache = LeaseCache(gone.append)
    asking = cache.ask()
    for first in (100, 115, 130):
        inodes = [inode(InodeId(first + number)) for number in range(15)]
        cache.learn_inodes(asking, inodes)
        cache.learn_names(asking, InodeId(first), [(b"%d" % each.ino, each.ino) for each in inodes])
    assert cache.inodes() == list(range(125, 145)), "the newest"
    assert gone == list(range(100, 125))
    assert not cache.names(InodeId(100)), "the oldest directory"
    assert len(cache.names(InodeId(115))) == len(cache.names(InodeId(130))) == 15
    cache.learn_names(asking, InodeId(145), [(b"%d" % number, InodeId(number)) for number in range(31)])
    assert not cache.names(InodeId(145)), "too large by itself"
    cache.learn_all(asking, InodeId(145))
    assert not cache.is_complete(InodeId(145))
