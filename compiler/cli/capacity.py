"""What an engine takes at once, to refuse a load that it cannot carry before anything is loaded or measured."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.compiler.errors import UserError


@dataclass(frozen=True)
class Capacity:
    """sequences at once, tokens of one sequence, blocks of block_size tokens for all (with kv_cache_tokens: auto at most so many)."""

    sequences: int
    tokens: int
    blocks: int
    block_size: int

    @classmethod
    def of(cls, manifest, kv_tokens: int | None) -> Capacity:
        """kv_tokens: of the KV cache, None for what the engine says."""
        limits, kv = manifest.limits, manifest.plan.kv
        blocks = kv.num_blocks if kv_tokens is None else -(-kv_tokens // kv.block_size)
        return cls(limits.max_sequences, min(limits.max_sequence_length, blocks * kv.block_size), blocks, kv.block_size)

    def takes(self, sequences: int, tokens: int) -> bool:
        """Whether so many sequences of so many tokens run without waiting for one another."""
        return sequences <= self.sequences and tokens <= self.tokens and sequences * -(-tokens // self.block_size) <= self.blocks

    def check(self, sequences: int, tokens: int, what: str) -> None:
        """Raises UserError for what it does not take. what: options that add up to `tokens`."""
        if sequences > self.sequences:
            raise UserError("--batch", f"{sequences:,}", f"at most {self.sequences:,}, the engine's limits.max_sequences")
        if tokens > self.tokens:
            raise UserError(what, f"{tokens:,}", f"at most {self.tokens:,} tokens of a sequence")
        if not self.takes(sequences, tokens):
            wanted, most = (blocks * self.block_size for blocks in (sequences * -(-tokens // self.block_size), self.blocks))
            raise UserError(f"{what}, of {sequences:,} sequences", f"{wanted:,} tokens in the KV cache", f"at most {most:,}",
                            f"--kv-tokens {wanted}, or fewer sequences with --batch")  # fmt: skip
