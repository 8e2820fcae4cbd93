"""The hashes of Slipway's own parts change with every file they stand for."""

import importlib.util
from types import SimpleNamespace

import pytest

from slipway.compiler import version


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder in the place of the installed rooms."""
    (tmp_path / "runtime/triton").mkdir(parents=True)
    for name in ("runtime/engine.py", "runtime/triton/pump.py", "runtime/_native.so"):
        (tmp_path / name).write_text("as built")
    monkeypatch.setattr(version, "ROOM_PARENT", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=tmp_path / "runtime/_native.so"))
    return tmp_path


def hashes():
    return version.source_digest.__wrapped__("runtime"), version.source_digest.__wrapped__("runtime/engine.py"), version.runtime_digest.__wrapped__()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("runtime/engine.py", (True, True, True)),
        ("runtime/triton/pump.py", (True, False, True)),
        ("runtime/_native.so", (False, False, True)),
    ],
)
def test_a_changed_file_changes_the_hash(installed, changed, expected):
    version.source_digest.cache_clear()
    before = hashes()
    (installed / changed).write_text("as rebuilt")
    version.source_digest.cache_clear()
    after = hashes()
    version.source_digest.cache_clear()
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == expected
