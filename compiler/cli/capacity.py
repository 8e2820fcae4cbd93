"""Refuses a load that an engine cannot carry, before anything is measured."""

from __future__ import annotations

from slipway.compiler.errors import UserError
from slipway.runtime.capacity import Capacity


def check_load(capacity: Capacity, sequences: int, tokens: int, what: str) -> None:
    """Raises UserError for what the engine does not take. what: options that add up to `tokens` of each sequence."""
    if sequences > capacity.sequences:
        raise UserError("--batch", f"{sequences:,}", f"at most {capacity.sequences:,}, the engine's limits.max_sequences")
    if tokens > capacity.longest:
        raise UserError(what, f"{tokens:,}", f"at most {capacity.longest:,}, the engine's limits.max_sequence_length")
    if not capacity.takes(sequences, tokens):
        most = f"at most {capacity.tokens_of(sequences):,}, which the KV cache holds of each"
        hint = f"--kv-tokens {capacity.kv_tokens_for(sequences, tokens)}, or fewer sequences with --batch"
        raise UserError(f"{what}, of {sequences:,} at once", f"{tokens:,}", most, hint)
