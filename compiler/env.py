"""Every environment variable Slipway reads, in one table; an unknown SLIPWAY_* is an error."""

from __future__ import annotations

import os
import pathlib
import re
import shlex

from slipway.compiler.errors import UserError

VARIABLES = {
    "SLIPWAY_DEBUG": "0..5: times, diffs, declined rewrites, rendered kernels, compiler commands",
    "SLIPWAY_CACHE": "folder of the stage cache (default: ~/.cache/slipway)",
    "SLIPWAY_CACHE_SIZE": "what the stage cache may hold beside engines, as 500MB, 50GB or 1TB (default: 50GB)",
    "SLIPWAY_DEVICE": "emulated, or emulated:SEED: engines for a GPU run on the CPU, with that order of threads",
    "SLIPWAY_CXX": "C++ compiler for host kernels (default: c++)",
}

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def check() -> None:
    """Raises UserError for a SLIPWAY_* variable that is not in VARIABLES."""
    for name in os.environ:
        if name.startswith("SLIPWAY_") and name not in VARIABLES:
            raise UserError(f"environment: {name}", "unknown variable", f"one of {', '.join(VARIABLES)}")


def debug() -> int:
    """The debug level, 0 when unset."""
    text = os.environ.get("SLIPWAY_DEBUG", "0")
    if not text.isdigit() or int(text) > 5:
        raise UserError("environment: SLIPWAY_DEBUG", repr(text), "a level from 0 to 5")
    return int(text)


def cache_dir() -> pathlib.Path:
    """Need not be there yet. Raises UserError for what is no folder."""
    path = pathlib.Path(os.environ.get("SLIPWAY_CACHE") or pathlib.Path.home() / ".cache" / "slipway")
    if path.exists() and not path.is_dir():
        raise UserError("environment: SLIPWAY_CACHE", f"{path} is no folder", "a folder, which may be new")
    return path


def cache_bytes() -> int:
    """The size the stage cache is kept within."""
    text = os.environ.get("SLIPWAY_CACHE_SIZE") or "50GB"
    found = re.fullmatch(r"(\d{1,9}) ?(MB|GB|TB)", text)
    if not found:
        raise UserError("environment: SLIPWAY_CACHE_SIZE", repr(text), "a size, as 500MB, 50GB or 1TB")
    return int(found[1]) * UNITS[found[2]]


def cxx() -> list[str]:
    """The C++ compiler's command, as words: `ccache g++` is two."""
    text = os.environ.get("SLIPWAY_CXX") or "c++"
    try:
        return shlex.split(text) or ["c++"]
    except ValueError as error:
        raise UserError("environment: SLIPWAY_CXX", f"{text!r}: {error}", "a command") from None
