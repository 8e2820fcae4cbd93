"""Keeps the stage cache within a size: what was used longest ago goes first.

An entry that an engine shares by a hard link takes no room of its own and is not counted.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import time

GRACE_S = 3600  # what was used since may still be wanted by a build that runs


def mark_used(entry: pathlib.Path) -> None:
    """By its time of access, which file systems seldom keep by themselves."""
    with contextlib.suppress(PermissionError):  # somebody else's entry
        os.utime(entry, ns=(time.time_ns(), entry.stat().st_mtime_ns))


def own_bytes(root: pathlib.Path) -> int:
    """Bytes that nothing but the cache holds."""
    return sum(status.st_size for _, status in _entries(root))


def evict(root: pathlib.Path, limit_bytes: int) -> None:
    """Removes the least recently used entries until `limit_bytes` hold the rest, and what builds that died left in the making."""
    before = time.time() - GRACE_S
    for unfinished in root.glob("*/??/.making-*"):
        if unfinished.stat().st_mtime < before:
            shutil.rmtree(unfinished, ignore_errors=True)
    entries = sorted(_entries(root), key=lambda entry: entry[1].st_atime)
    excess = sum(status.st_size for _, status in entries) - limit_bytes
    for path, status in entries:
        if excess <= 0 or status.st_atime > before:
            return
        path.unlink(missing_ok=True)
        excess -= status.st_size


def _entries(root: pathlib.Path) -> list[tuple[pathlib.Path, os.stat_result]]:
    found = []
    for path in root.glob("*/??/*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another build removed it
            continue
        if path.is_file() and status.st_nlink == 1:
            found.append((path, status))
    return found
