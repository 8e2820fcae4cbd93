"""Keeps what a stage made under the hash of everything it was made from, and says why a stage had to run.

A stage is named by a kind ("weights") and a subject ("model.layers.0.mlp"); its *parts* are the named inputs it depends on.
An entry is one file or folder, made in a temporary place and renamed, so an interrupted build leaves nothing half-written.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import xxhash


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
        """The entry for `parts`; `make(path)` writes it on a miss. The returned path must not be changed."""
        entry = self.entry(kind, parts)
        ran = not entry.exists()
        if ran:
            self._make(entry, make)
        why = self._why(kind, subject, parts) if ran else "cached"
        self._remember(StageRecord(kind, subject, ran, why), parts)
        return entry

    def would_run(self, kind: str, subject: str, parts: dict[str, str]) -> StageRecord:
        """What `fetch` would do, without doing it."""
        ran = not self.entry(kind, parts).exists()
        return StageRecord(kind, subject, ran, self._why(kind, subject, parts) if ran else "cached")

    def entry(self, kind: str, parts: dict[str, str]) -> pathlib.Path:
        key = digest(json.dumps(parts, sort_keys=True))
        return self.root / kind / key[:2] / key

    def forget(self, kind: str, parts: dict[str, str]) -> None:
        """Drops an entry that turned out to be damaged."""
        entry = self.entry(kind, parts)
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)

    def _make(self, entry: pathlib.Path, make: Callable[[pathlib.Path], None]) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".making-") as folder:
            made = pathlib.Path(folder) / "entry"
            make(made)
            try:
                os.rename(made, entry)
            except OSError:
                if not entry.exists():  # another build of the same thing may have won the race
                    raise

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
