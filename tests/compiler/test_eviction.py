"""The cache stays within its size: what was used longest ago goes, what an engine shares or a running build may want stays."""

import os
import time

import pytest

from slipway.compiler import env, eviction
from slipway.compiler.cache import StageCache
from slipway.compiler.errors import UserError

DAY_S = 86400


@pytest.fixture
def entry(tmp_path):
    """entry(name, age_s) -> an entry of 100 bytes that was used so long ago."""
    cache = StageCache(tmp_path / "cache", "out")

    def make(name, age_s=DAY_S):
        made = cache.fetch("kind", name, {"name": name}, lambda out: out.write_bytes(bytes(100)))
        os.utime(made, (time.time() - age_s, 0))
        return made

    make.cache = cache
    return make


def test_the_least_recently_used_go_first(entry, tmp_path):
    oldest, old, fresh = entry("a", 3 * DAY_S), entry("b", 2 * DAY_S), entry("c", DAY_S)
    assert eviction.own_bytes(tmp_path / "cache") == 300
    eviction.evict(tmp_path / "cache", 200)
    assert [path.exists() for path in (oldest, old, fresh)] == [False, True, True]


def test_a_fetch_is_a_use(entry, tmp_path):
    first, second = entry("a", 3 * DAY_S), entry("b", 2 * DAY_S)
    entry.cache.fetch("kind", "a", {"name": "a"}, None)
    eviction.evict(tmp_path / "cache", 100)
    assert first.exists() and not second.exists()


def test_what_may_still_be_wanted_stays(entry, tmp_path):
    shared, recent = entry("a"), entry("b", 60)
    os.link(shared, tmp_path / "engine.bin")
    eviction.evict(tmp_path / "cache", 0)
    assert shared.exists() and recent.exists()
    (tmp_path / "engine.bin").unlink()
    eviction.evict(tmp_path / "cache", 0)
    assert not shared.exists() and recent.exists()


def test_what_a_dead_build_left_goes(entry, tmp_path):
    folder = entry("a").parent
    for name, age_s in ((".making-dead", DAY_S), (".making-now", 1)):
        (folder / name).mkdir()
        (folder / name / "entry").write_text("half")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    eviction.evict(tmp_path / "cache", 1000)
    assert sorted(path.name for path in folder.glob(".making-*")) == [".making-now"]


def test_an_empty_cache_has_a_size(tmp_path):
    assert eviction.own_bytes(tmp_path / "none") == 0
    eviction.evict(tmp_path / "none", 0)


@pytest.mark.parametrize(("text", "size"), [("", 50 * 10**9), ("500MB", 5 * 10**8), ("2 TB", 2 * 10**12), ("0GB", 0)])
def test_the_size_is_stated_with_its_unit(monkeypatch, text, size):
    monkeypatch.setenv("SLIPWAY_CACHE_SIZE", text)
    assert env.cache_bytes() == size


@pytest.mark.parametrize("text", ["lots", "50", "1.5GB", "-1GB", "50gib"])
def test_a_size_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("SLIPWAY_CACHE_SIZE", text)
    with pytest.raises(UserError, match="SLIPWAY_CACHE_SIZE"):
        env.cache_bytes()
