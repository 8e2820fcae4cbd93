"""What an engine carries at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """sequences at once, tokens of one at most, and blocks of block_size tokens for all."""

    sequences: int
    longest: int
    blocks: int
    block_size: int

    @classmethod
    def of(cls, manifest, kv_tokens: int | None = None) -> Capacity:
        """kv_tokens: of the KV cache; None for what the manifest says, which with kv_cache_tokens: auto is the most it may be."""
        limits, kv = manifest.limits, manifest.plan.kv
        blocks = kv.num_blocks if kv_tokens is None else -(-kv_tokens // kv.block_size)
        return cls(limits.max_sequences, limits.max_sequence_length, blocks, kv.block_size)

    def tokens_of(self, sequences: int) -> int:
        """Tokens of each of so many sequences, if none is to wait for another: one is admitted while a block stays free for each
        that runs."""
        return max(0, min(self.longest, ((self.blocks + 1) // sequences - 1) * self.block_size))

    def takes(self, sequences: int, tokens: int) -> bool:
        return sequences <= self.sequences and tokens <= self.tokens_of(sequences)

    def kv_tokens_for(self, sequences: int, tokens: int) -> int:
        """What the KV cache must hold for so many sequences of so many tokens."""
        return (sequences * (-(-tokens // self.block_size) + 1) - 1) * self.block_size
