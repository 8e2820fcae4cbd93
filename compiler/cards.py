"""NVIDIA cards  ->  what their limits allow: bytes read and operations a second, by data sheet and by what others measured.

    read      data sheets' memory bandwidth times READ_SHARE, the share that a copy or a read reaches (an H200's is 4.3 of 4.8 TB/s)
    flops     dense bf16 with float32 sums, of data sheets; 8- and 4-bit weights are multiplied in bf16 too
    NODE_S    what a kernel in a CUDA graph costs besides its work, on an H100
"""

from __future__ import annotations

from dataclasses import dataclass

from slipway.compiler.errors import UserError

READ_SHARE, NODE_S = 0.9, 1.3e-6


@dataclass(frozen=True)
class Card:
    """target: of its engines. memory_bytes: of the card. peak_read_bytes_per_s: its data sheet's."""

    name: str
    target: str
    memory_bytes: int
    peak_read_bytes_per_s: float
    flops_per_s: float

    @property
    def read_bytes_per_s(self) -> float:
        return READ_SHARE * self.peak_read_bytes_per_s

    def seconds(self, bytes_moved: float, flops: float, launches: int) -> float:
        """What this work takes at both limits, none of the bytes being in the caches, and what its kernels cost besides."""
        return max(bytes_moved / self.read_bytes_per_s, flops / self.flops_per_s) + launches * NODE_S


CARDS = {
    card.name: card
    for card in (
        Card("a100", "sm80", 80 << 30, 2.039e12, 312e12),
        Card("l40s", "sm89", 48 << 30, 0.864e12, 362e12),
        Card("h200", "sm90", 141 << 30, 4.8e12, 989e12),
        Card("h100", "sm90", 80 << 30, 3.35e12, 989e12),
        Card("b200", "sm100", 180 << 30, 8.0e12, 2250e12),
        Card("rtx-pro-6000", "sm120", 96 << 30, 1.792e12, 504e12),
    )
}


def cards_for(target: str) -> list[Card]:
    """Those that run engines of a target, the one it is first built for in front."""
    return [card for card in CARDS.values() if card.target == target]


def card_for(target: str, name: str | None) -> Card:
    """name: None for the first. Raises UserError for one that does not run the target's engines, or of which nothing is known."""
    fitting = cards_for(target)
    found = next((card for card in fitting if name is None or name.lower() == card.name), None)
    if found is None:
        raise UserError("--card", f"{name or 'none'} with an engine for {target}", ", ".join(card.name for card in fitting) or "one in the table: none has this target")
    return found
