"""Places buffers of known lifetime in one arena so that none overlaps another while both are alive."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `bytes` written at step `first` and last read at step `last` (both included)."""

    bytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def align(n: int, to: int = ALIGNMENT) -> int:
    return (n + to - 1) // to * to


def place(lifetimes: list[Lifetime]) -> tuple[list[int], int]:
    """Offsets of the buffers and the arena's size, both in bytes; largest buffers first, each at the lowest gap."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].bytes, lifetimes[i].first)):
        neighbours = sorted((offsets[j], align(lifetimes[j].bytes)) for j in placed if lifetimes[i].meets(lifetimes[j]))
        offset = 0
        for start, size in neighbours:
            if offset + align(lifetimes[i].bytes) <= start:
                break
            offset = max(offset, start + size)
        offsets[i] = offset
        placed.append(i)
    return offsets, max((o + align(b.bytes) for o, b in zip(offsets, lifetimes)), default=0)
