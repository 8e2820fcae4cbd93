"""Which Slipway this is: its version, and a hash of the sources that decide what a stage makes."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import pathlib

from slipway.compiler.cache import digest, file_digest

ROOM_PARENT = pathlib.Path(__file__).resolve().parent.parent


def version() -> str:
    try:
        return importlib.metadata.version("slipway")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


@functools.cache
def source_digest(*places: str) -> str:
    """One hash of the Python sources of some rooms or files ("plugins", "compiler/verify.py")."""
    roots = [ROOM_PARENT / place for place in places]
    files = sorted(path for root in roots for path in ([root] if root.is_file() else root.rglob("*.py")))
    return digest("".join(path.read_text() for path in files))


@functools.cache
def runtime_digest() -> str:
    """One hash of all that runs an engine: the runtime's Python sources and its native extension."""
    return digest(source_digest("runtime") + file_digest(pathlib.Path(importlib.util.find_spec("slipway.runtime._native").origin)))
