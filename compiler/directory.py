"""Assembles an engine directory beside its destination and puts it there, whole, in one step of the file system.

A draft is locked by the process that fills it; one that nobody holds was left by a process that died, and is removed. Ctrl-C
leaves the old engine or the new one and nothing else, unless a second one comes while the first is cleaned up after.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from slipway.compiler import disk
from slipway.compiler.errors import UserError

SHARED_BYTES = 1 << 20  # from here on a copy is worth avoiding
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def check_destination(out: pathlib.Path) -> None:
    """Refuses a destination that holds something other than an engine, that nothing can take the place of, or that cannot be made."""
    if out.exists() and not (out / "engine.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), "exists and is not an engine directory", "a new path, or an engine to replace")
    if out.resolve().is_mount():
        raise UserError(str(out), "is a mount point, which cannot be replaced", "a folder in it", f"-o {out / 'engine'}")
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    try:
        with _draft(parent, out.resolve().name):
            pass
    except OSError as error:
        raise UserError(f"{str(out):.200}", f"cannot be made in {parent}: {error.strerror}", "a new path in a folder that can be written") from None


@contextlib.contextmanager
def publishing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill; published as `out`, where a link leads to, when the block ends well, removed when it does not."""
    out = out.resolve()
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for draft in out.parent.glob(f".{glob.escape(out.name)}.*.draft"):
        with contextlib.suppress(OSError), _locked(draft):
            _remove(draft)
    with _draft(out.parent, out.name) as draft, _locked(draft):
        yield draft
        for path in [*draft.rglob("*"), draft]:
            disk.write_through(path)
        check_destination(out)
        replace_folder(draft, out)
        disk.write_through(out.parent)


@contextlib.contextmanager
def _draft(parent: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """A new folder, gone at the end."""
    draft = parent / f".{name}.{secrets.token_hex(4)}.draft"
    try:
        draft.mkdir()
        yield draft
    finally:
        try:
            _remove(draft)
        finally:  # where Ctrl-C cuts the first short
            _remove(draft)


def _remove(folder: pathlib.Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:  # Ctrl-C can make it close a descriptor twice, which then takes the place of Ctrl-C
        raise error.__context__ or error from None


def replace_folder(draft: pathlib.Path, out: pathlib.Path) -> None:
    """Renames `draft` to `out`; what was there is `draft` afterwards. Where the file system can exchange, `out` is never absent."""
    if not out.exists():
        return os.rename(draft, out)
    try:
        _exchange(draft, out)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        _exchange_by_turns(draft, out)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "no renameat2 in this C library")
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _exchange_by_turns(draft: pathlib.Path, out: pathlib.Path) -> None:
    old = draft.with_suffix(".old")

    def tidy() -> None:
        if old.exists():
            os.rename(old, draft if out.exists() else out)

    try:
        os.rename(out, old)
        os.rename(draft, out)
    finally:
        try:
            tidy()
        finally:  # where Ctrl-C cuts the first short
            tidy()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Raises OSError if another process holds the folder, or it is gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def place(source: pathlib.Path, destination: pathlib.Path) -> None:
    """A hard link to a large file, so that engines of one checkpoint share its bytes; a copy of a small one, or where links fail."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        return
    if source.stat().st_size >= SHARED_BYTES:
        with contextlib.suppress(OSError):
            return os.link(source, destination)
    disk.copy(source, destination)
