"""Assembles an engine directory beside its destination and renames it into place once it is whole."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from slipway.compiler import disk
from slipway.compiler.errors import UserError

SHARED_BYTES = 1 << 20  # from here on a copy is worth avoiding


def check_destination(out: pathlib.Path) -> None:
    """Refuses a destination that holds something other than an engine."""
    if out.exists() and not (out / "engine.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), "exists and is not an engine directory", "a new path, or an engine to replace")


@contextlib.contextmanager
def publishing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill; published as `out` when the block ends well, removed when it does not."""
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.parent / f".{out.name}.{os.getpid()}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        _swap(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: pathlib.Path, out: pathlib.Path) -> None:
    old = out.parent / f".{out.name}.{os.getpid()}.old"
    if out.exists():
        os.rename(out, old)
    try:
        os.rename(draft, out)
    except OSError:
        if old.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def place(source: pathlib.Path, destination: pathlib.Path) -> None:
    """A hard link to a large file, so that engines of one checkpoint share its bytes; a copy of a small one, or where links fail."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        return
    if source.stat().st_size >= SHARED_BYTES:
        with contextlib.suppress(OSError):
            return os.link(source, destination)
    disk.copy(source, destination)
