"""Content hashes of a checkpoint's files, remembered by path, inode, size and times so that an unchanged file is hashed once."""

from __future__ import annotations

import json
import os
import pathlib
import threading
import tempfile

from slipway.compiler.cache import digest, file_digest
from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.graph import Graph


class Identities:
    """What a tensor or a file of the checkpoint holds, as a hash. memo: JSON file in the stage cache."""

    def __init__(self, checkpoint: Checkpoint, cache_root: pathlib.Path):
        self.checkpoint, self.memo_path = checkpoint, cache_root / "files.json"
        self.memo = self._saved()
        self.hashing: dict[str, threading.Lock] = {}

    def tensor(self, name: str, graph: Graph) -> str:
        """A weight: its name, how it is stored, and the content of the files that hold it. A constant of the graph: its values."""
        if name in graph.constants:
            return digest(graph.constants[name].contiguous().numpy().tobytes())
        return digest(" ".join([name, str(self.checkpoint.quantization), *map(self.file, self.checkpoint.files_of(name))]))

    def file(self, path: pathlib.Path) -> str:
        """Threads that ask for the same file wait for the one that reads it."""
        status = path.stat()
        key = f"{path.resolve()} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        with self.hashing.setdefault(key, threading.Lock()):
            if key not in self.memo:
                self.memo[key] = file_digest(path)
        return self.memo[key]

    def save(self) -> None:
        """Adds what this build has hashed to what others may have saved meanwhile."""
        self.memo_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.memo_path.parent, prefix=".making-") as folder:
            draft = pathlib.Path(folder) / self.memo_path.name
            draft.write_text(json.dumps(self._saved() | self.memo))
            os.replace(draft, self.memo_path)

    def _saved(self) -> dict[str, str]:
        try:
            memo = json.loads(self.memo_path.read_text())
        except (OSError, ValueError):
            return {}
        return memo if isinstance(memo, dict) else {}
