"""A stage runs once for the same parts, says why it ran, and never leaves half an entry."""

import pytest

from slipway.compiler.cache import StageCache, digest, file_digest


@pytest.fixture
def build(tmp_path):
    """build(**parts) -> (content of the entry, record): one build of one stage."""

    def run(slot="out", fail=False, **parts):
        cache = StageCache(tmp_path / "cache", slot)

        def make(path):
            path.write_text("half")
            if fail:
                raise KeyboardInterrupt
            path.write_text(f"made of {parts}")

        try:
            text = cache.fetch("kind", "subject", parts, make).read_text()
        finally:
            cache.close()
        return text, cache.records[0]

    return run


def test_the_same_parts_run_once(build):
    first, second = build(a="1"), build(a="1")
    assert first[0] == second[0]
    assert (first[1].ran, first[1].why) == (True, "never built here")
    assert (second[1].ran, second[1].why) == (False, "cached")


def test_a_changed_part_is_named(build):
    build(a="1", b="1", c="1")
    assert build(a="2", b="1", c="2")[1].why == "changed: a, c"
    assert build(a="1", b="1", c="1")[1].why == "cached"


def test_reasons_belong_to_an_output(build):
    build(a="1")
    assert build("elsewhere", a="2")[1].why == "never built here"


def entry_in(folder):
    (path,) = [path for path in (folder / "cache" / "kind").rglob("*") if path.is_file()]
    return path


def test_a_lost_entry_is_made_again(build, tmp_path):
    build(a="1")
    entry_in(tmp_path).unlink()
    assert build(a="1")[1].why == "its cache entry is gone"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"!", lambda data: data + b"!"])
def test_a_damaged_entry_is_made_again(build, tmp_path, damage):
    made = build(a="1")[0]
    entry = entry_in(tmp_path)
    entry.chmod(0o644)
    entry.write_bytes(damage(entry.read_bytes()))
    text, record = build(a="1")
    assert (text, record.ran, record.why) == (made, True, "its cache entry is damaged")
    assert build(a="1")[1].why == "cached"


def test_entries_are_read_only(build, tmp_path):
    build(a="1")
    assert entry_in(tmp_path).stat().st_mode & 0o777 == 0o444


def test_an_interrupted_stage_leaves_nothing(build, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(a="1", fail=True)
    assert not [path for path in (tmp_path / "cache" / "kind").rglob("*") if path.is_file()]
    assert build(a="1")[0] == "made of {'a': '1'}"


def test_would_run_changes_nothing(tmp_path):
    cache = StageCache(tmp_path, "out")
    assert cache.would_run("kind", "subject", {"a": "1"}).ran
    assert not list(tmp_path.iterdir())


def test_digests(tmp_path):
    (tmp_path / "file").write_bytes(b"slipway" * 1000)
    assert file_digest(tmp_path / "file", chunk_bytes=64) == digest(b"slipway" * 1000) == digest("slipway" * 1000)
