"""An engine appears whole or not at all, and replaces nothing but an engine."""

import pytest

from slipway.compiler.directory import SHARED_BYTES, place, publishing
from slipway.compiler.errors import UserError


def publish(out, text="new"):
    with publishing(out) as draft:
        (draft / "engine.json").write_text(text)


def test_publishing_makes_and_replaces(tmp_path):
    publish(tmp_path / "deep" / "engine", "one")
    publish(tmp_path / "deep" / "engine", "two")
    assert (tmp_path / "deep" / "engine" / "engine.json").read_text() == "two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["engine"]


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "engine"
    publish(out, "old")
    with pytest.raises(ZeroDivisionError), publishing(out) as draft:
        (draft / "engine.json").write_text("half")
        raise ZeroDivisionError
    assert (out / "engine.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("make", [lambda out: out.write_text("a file"), lambda out: (out.mkdir(), (out / "thesis.tex").write_text("x"))])
def test_other_things_are_not_replaced(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(UserError, match="is not an engine directory"):
        publish(tmp_path / "out")


def test_an_empty_folder_may_become_an_engine(tmp_path):
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")


@pytest.mark.parametrize(("size", "shared"), [(SHARED_BYTES, True), (SHARED_BYTES - 1, False)])
def test_large_files_are_shared_and_small_ones_copied(tmp_path, size, shared):
    (tmp_path / "a").write_bytes(bytes(size))
    for _ in range(2):
        place(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").stat().st_size == size
    assert (tmp_path / "a").samefile(tmp_path / "folder" / "b") == shared
