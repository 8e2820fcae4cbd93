"""Token sequences -> the logits an engine gives after each of their tokens: `python -m slipway.runtime.score ENGINE IN OUT`.

IN: .npy, int32 [sequences, tokens]. OUT: .npy, f32 [sequences, tokens, vocabulary]. One sequence runs at a time, in chunks.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

from slipway.runtime import gpu, loading
from slipway.runtime.manifest import Manifest


class Scorer:
    """An engine's plan without its scheduler: every sequence starts in an empty cache."""

    def __init__(self, path: str | pathlib.Path, threads: int | None = None):
        from slipway.runtime import _native

        directory = pathlib.Path(path)
        self.manifest = manifest = Manifest.read(directory)
        emulated = gpu.emulation(manifest.target, None)
        options = loading.Options(threads or loading.stated_threads(manifest), None, True, emulated=emulated)
        loading.check_machine(manifest, directory, emulated)
        loading.request_amx(manifest)
        self.num_blocks = -(-manifest.limits.max_sequence_length // manifest.plan.kv.block_size)
        weights = loading.map_files(manifest, directory, options)
        self.executor = _native.Executor(manifest, str(directory), weights, self.num_blocks, options.num_threads, emulated)
        loading.bind_segments(manifest, directory, self.executor, options)
        self._blocks = np.arange(self.num_blocks, dtype=np.int32)[None]

    def logits(self, token_ids: np.ndarray) -> np.ndarray:
        """token_ids int32 [tokens] -> f32 [tokens, vocabulary]."""
        chunk = min(self.manifest.limits.max_batch_tokens, self.manifest.limits.max_logit_rows)
        starts = range(0, len(token_ids), chunk)
        return np.concatenate([self._chunk(token_ids[start : start + chunk], start) for start in starts])

    def _chunk(self, token_ids: np.ndarray, start: int) -> np.ndarray:
        count = len(token_ids)
        rows = np.arange(count, dtype=np.int32)
        lengths, kv_lens = np.array([0, count], np.int32), np.array([start + count], np.int32)
        return self.executor.run(np.ascontiguousarray(token_ids), rows + np.int32(start), lengths, kv_lens, self._blocks, rows)


def main(engine: str, tokens_path: str, logits_path: str) -> None:
    scorer = Scorer(engine)
    np.save(logits_path, np.stack([scorer.logits(sequence) for sequence in np.load(tokens_path)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
