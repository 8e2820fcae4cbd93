"""Compares the files of an engine directory with their hashes, on several threads (xxhash releases the GIL)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import xxhash

from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Manifest, hash_file
from slipway.runtime.parallel import for_each


def verify(manifest: Manifest, directory: pathlib.Path, mapped: Mapping[str, object], threads: int) -> None:
    """Raises EngineError for the first file, in name order, whose contents changed.

    mapped: files whose bytes are in memory already, as buffers. The biggest files start first.
    """

    def is_good(name: str) -> bool:
        found = xxhash.xxh3_128(mapped[name]).hexdigest() if name in mapped else hash_file(directory / name).xxh3_128
        return found == manifest.files[name].xxh3_128

    names = sorted(manifest.files, key=lambda name: -manifest.files[name].bytes)
    verdicts = for_each(is_good, names, threads)
    damaged = sorted(name for name, good in zip(names, verdicts, strict=True) if not good)
    if damaged:
        path = str(directory / damaged[0])
        raise EngineError(path, "contents changed since the build", hint="the engine is damaged: copy or build it again")
