"""Keeps what a stage made under the hash of everything it was made from, and says why a stage had to run.

A stage is named by a kind ("weights") and a subject ("model.layers.0.mlp"); its *parts* are the named inputs it depends on.
An entry is one read-only file, named by two hashes: of its parts and of its bytes, which every fetch compares. It is on the
disk before it gets its name, so an interrupted build leaves nothing half-written.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash

from slipway.compiler.disk import write_through
from slipway.compiler.eviction import mark_used


def digest(data: bytes | memoryview | str) -> str:
    """128-bit content hash, 32 hex digits; of a text, its UTF-8 bytes."""
    return xxhash.xxh3_128_hexdigest(data.encode() if isinstance(data, str) else data)


def file_digest(path: pathlib.Path, chunk_bytes: int = 1 << 24) -> str:
    """Content hash of a file, read in chunks."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(chunk_bytes):
            state.update(chunk)
    return state.hexdigest()


def digest_of(entry: pathlib.Path) -> str:
    """The content hash of a cache entry, from its name."""
    return entry.name.rpartition("-")[2]


def _key(parts: dict[str, str]) -> str:
    return digest(json.dumps(parts, sort_keys=True))


def _is_whole(entry: pathlib.Path) -> bool:
    try:
        return file_digest(entry) == digest_of(entry)
    except FileNotFoundError:  # another build found it damaged first
        return False


@dataclass(frozen=True)
class StageRecord:
    """How one stage of a build went. `why` is "cached" or the reason it ran."""

    kind: str
    subject: str
    ran: bool
    why: str


@dataclass
class StageCache:
    """root: folder of the cache. slot: names the build whose previous parts explain a miss (its output folder)."""

    root: pathlib.Path
    slot: str
    records: list[StageRecord] = field(default_factory=list)
    _parts: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, kind: str, subject: str, parts: dict[str, str], make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        """The entry for `parts`, its bytes as they were made; `make(path)` writes a file on a miss. Entries must not be changed."""
        entries = self._entries(kind, parts)
        entry = next(filter(_is_whole, entries), None)
        why = "cached" if entry else "its cache entry is damaged" if entries else self._why(kind, subject, parts)
        for damaged in entries if entry is None else ():
            damaged.unlink(missing_ok=True)
        if entry:
            mark_used(entry)
        self._remember(StageRecord(kind, subject, entry is None, why), parts)
        return entry or self._make(kind, parts, make)

    def would_run(self, kind: str, subject: str, parts: dict[str, str]) -> StageRecord:
        """What `fetch` would do if no entry is damaged, without doing it."""
        ran = not self._entries(kind, parts)
        return StageRecord(kind, subject, ran, self._why(kind, subject, parts) if ran else "cached")

    def _entries(self, kind: str, parts: dict[str, str]) -> list[pathlib.Path]:
        """At most one, but for builds that raced to make it."""
        key = _key(parts)
        return sorted((self.root / kind / key[:2]).glob(f"{key}-*"))

    def _make(self, kind: str, parts: dict[str, str], make: Callable[[pathlib.Path], None]) -> pathlib.Path:
        key = _key(parts)
        folder = self.root / kind / key[:2]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
            made = pathlib.Path(making) / "entry"
            make(made)
            made.chmod(0o444)
            write_through(made)
            entry = folder / f"{key}-{file_digest(made)}"
            os.replace(made, entry)
        write_through(folder)
        return entry

    def _slot_file(self) -> pathlib.Path:
        return self.root / "slots" / f"{digest(self.slot)}.json"

    def _previous(self) -> dict[str, dict[str, str]]:
        try:
            return json.loads(self._slot_file().read_text())
        except (OSError, ValueError):
            return {}

    def _why(self, kind: str, subject: str, parts: dict[str, str]) -> str:
        before = self._previous().get(f"{kind}:{subject}")
        if before is None:
            return "never built here"
        changed = sorted(name for name in before.keys() | parts.keys() if before.get(name) != parts.get(name))
        return f"changed: {', '.join(changed)}" if changed else "its cache entry is gone"

    def _remember(self, record: StageRecord, parts: dict[str, str]) -> None:
        with self._lock:
            self.records.append(record)
            self._parts[f"{record.kind}:{record.subject}"] = parts

    def close(self) -> None:
        """Writes down the parts of this build, for the next one's reasons."""
        path = self._slot_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._previous() | self._parts))
        os.replace(temporary, path)
