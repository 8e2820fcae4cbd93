"""An engine appears whole or not at all, replaces nothing but an engine, and is never absent while it is replaced."""

import errno
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from slipway.compiler import directory
from slipway.compiler.directory import SHARED_BYTES, check_destination, place, publishing
from slipway.compiler.errors import UserError


def publish(out, text="new"):
    with publishing(out) as draft:
        (draft / "engine.json").write_text(text)


def no_exchange(*_):
    raise OSError(errno.EINVAL, "this file system does not exchange")


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture(params=["exchanging", "by turns"])
def file_system(request, monkeypatch):
    if request.param == "by turns":
        monkeypatch.setattr(directory, "_exchange", no_exchange)


def test_publishing_makes_and_replaces(tmp_path, file_system):
    publish(tmp_path / "deep" / "engine", "one")
    publish(tmp_path / "deep" / "engine", "two")
    assert (tmp_path / "deep" / "engine" / "engine.json").read_text() == "two"
    assert names(tmp_path / "deep") == ["engine"]


def test_a_replaced_engine_is_never_absent(tmp_path):
    out = tmp_path / "engine"
    publish(out)
    done, absent = threading.Event(), []

    def watch():
        while not done.is_set():
            try:
                os.stat(out)
            except FileNotFoundError:
                absent.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(100):
        publish(out, str(number))
    done.set()
    watcher.join()
    assert not absent


def test_a_failure_leaves_what_was_there(tmp_path):
    out = tmp_path / "engine"
    publish(out, "old")
    with pytest.raises(ZeroDivisionError), publishing(out) as draft:
        (draft / "engine.json").write_text("half")
        raise ZeroDivisionError
    assert (out / "engine.json").read_text() == "old"
    assert names(tmp_path) == ["engine"]


def test_a_failed_swap_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "engine"
    publish(out, "old")
    monkeypatch.setattr(directory, "_exchange", no_exchange)
    rename = os.rename

    def rename_but_drafts(source, destination):
        if str(source).endswith(".draft"):
            raise PermissionError(errno.EACCES, "no", str(destination))
        rename(source, destination)

    monkeypatch.setattr(os, "rename", rename_but_drafts)
    with pytest.raises(PermissionError):
        publish(out)
    assert (out / "engine.json").read_text() == "old"
    assert names(tmp_path) == ["engine"]


@pytest.mark.parametrize("make", [lambda out: out.write_text("a file"), lambda out: (out.mkdir(), (out / "thesis.tex").write_text("x"))])
def test_other_things_are_not_replaced(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(UserError, match="is not an engine directory"):
        publish(tmp_path / "out")


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="is not an engine directory"), publishing(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("x")
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_become_an_engine(tmp_path):
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "engine")
    for text in ("one", "two"):
        publish(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "engine" / "engine.json").read_text() == text
    assert names(tmp_path / "disk") == ["engine"]


def test_the_current_folder_may_become_an_engine(tmp_path, monkeypatch, file_system):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    publish(pathlib.Path("."))
    assert names(tmp_path) == ["here"] and names(tmp_path / "here") == ["engine.json"]


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "is_mount", lambda path: path == tmp_path)
    (tmp_path.parent / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path.parent / "link"):
        with pytest.raises(UserError, match="is a mount point"):
            check_destination(out)


def test_drafts_of_dead_processes_are_swept_and_others_kept(tmp_path):
    out = tmp_path / "engine"
    die = "import os, pathlib, sys; from slipway.compiler.directory import publishing\nwith publishing(pathlib.Path(sys.argv[1])) as d: os._exit(0)"
    subprocess.run([sys.executable, "-c", die, out], check=True)
    assert len(names(tmp_path)) == 1
    with publishing(out) as first:
        assert names(tmp_path) == [first.name]
        publish(out)
        assert first.is_dir()
        (first / "engine.json").write_text("first")
    assert (out / "engine.json").read_text() == "first"
    assert names(tmp_path) == ["engine"]


def interrupted_at(moment, action):
    """Runs `action` with Ctrl-C at the moment-th entry into a function or return from one written in C: nearly all points at which Python
    looks at signals (it does so at the end of a loop's body, too). -> whether it got there"""
    count, reached = itertools.count(), False

    def profile(frame, event, argument):
        nonlocal reached
        if event in ("call", "c_return") and next(count) == moment:
            reached = True
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(profile)
        action()
        sys.setprofile(None)
    except KeyboardInterrupt:
        pass
    return reached


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a generator that is being collected ends no process
@pytest.mark.parametrize("replaces", [False, True])
def test_ctrl_c_at_any_moment_leaves_the_old_engine_or_the_new_one(tmp_path, replaces, file_system):
    out = tmp_path / "engine"
    for moment in itertools.count():
        shutil.rmtree(out, ignore_errors=True)
        if replaces:
            publish(out, "old")
        cut_short = interrupted_at(moment, lambda: publish(out))
        assert names(tmp_path) == ["engine"] * out.exists(), moment
        assert out.exists() or not replaces
        assert not out.exists() or (out / "engine.json").read_text() in ("old", "new"), moment
        if not cut_short:
            break
    assert moment > 100 and (out / "engine.json").read_text() == "new"


@pytest.mark.parametrize(("size", "shared"), [(SHARED_BYTES, True), (SHARED_BYTES - 1, False)])
def test_large_files_are_shared_and_small_ones_copied(tmp_path, size, shared):
    (tmp_path / "a").write_bytes(bytes(size))
    for _ in range(2):
        place(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").stat().st_size == size
    assert (tmp_path / "a").samefile(tmp_path / "folder" / "b") == shared
