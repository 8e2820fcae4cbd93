"""Which Slipway this is: its version, and a hash of the sources that decide what a stage makes."""

from __future__ import annotations

import functools
import importlib.metadata
import pathlib

from slipway.compiler.cache import digest

ROOM_PARENT = pathlib.Path(__file__).resolve().parent.parent


def version() -> str:
    try:
        return importlib.metadata.version("slipway")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


@functools.cache
def source_digest(*rooms: str) -> str:
    """One hash of the Python sources of some rooms."""
    files = sorted(path for room in rooms for path in (ROOM_PARENT / room).rglob("*.py"))
    return digest("".join(path.read_text() for path in files))
