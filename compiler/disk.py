"""What the operating system keeps of a file between a program and the disk: bytes not yet written, pages not yet dropped."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def write_through(path: pathlib.Path) -> None:
    """Returns when a file's bytes, or a folder's names, are on the disk."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def leave_page_cache(path: pathlib.Path) -> None:
    """Pages that came by writing or reading are small; the runtime's mapping brings them back as huge ones. Only what is on the disk goes."""
    with _opened(path) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: pathlib.Path, destination: pathlib.Path) -> None:
    """A file of its own, on the disk."""
    shutil.copyfile(source, destination)
    write_through(destination)
    leave_page_cache(destination)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
