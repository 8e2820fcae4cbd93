"""Attention on a CPU: what its kernel is rendered with, its scratch and its KV blocks. Mirrors layout.hpp."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.compiler.target import Target
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE, Arguments
from slipway.plugins.plugin import Launch
from slipway.quantization.formats import KV_BF16, KV_INT8, KvFormat

TILE_ROWS = 32  # query rows multiplied at a time; as in layout.hpp, like all below
ITEM_TILES = 4
CHUNK = 512  # cached tokens between two merges
SCORES_BYTES = CHUNK // 16 * (TILE_ROWS + 1) * 64
SLOTS = 128
LINE = 64  # bytes
CACHES = {KV_BF16: "Bf16Cache", KV_INT8: "Int8Cache"}  # the format's class in C++


@dataclass(frozen=True)
class HostAttention:
    arguments: Arguments
    kv: KvFormat
    target: Target

    counters = shared_scratch_per_row = 0

    @property
    def declined(self) -> str | None:
        """Why no kernel takes it."""
        return None if self.kv in CACHES else f"no kernel for {self.kv.name} keys and values on {self.target}"

    @property
    def constants(self) -> dict[str, object]:
        """What launch.host.j2 asks for beside shapes and types."""
        return {"Cache": CACHES[self.kv], "local_bytes": self.local_scratch, "slots_bytes": self.shared_scratch}

    @property
    def block_bytes(self) -> int:
        """Of one KV block."""
        a = self.arguments
        return BLOCK_SIZE * a.num_kv_heads * (self.kv.token_bytes(a.head_dim) + self.kv.token_bytes(_columns(a.head_dim)))

    @property
    def shared_scratch(self) -> int:
        return SLOTS * (LINE + _state_bytes(self.arguments.head_dim))

    @property
    def local_scratch(self) -> int:
        return _local_scratch(self.arguments.head_dim, self.kv, self.target)

    def launches(self, symbol: str) -> tuple[Launch, ...]:
        return ()


def _columns(head_dim: int) -> int:
    """Of values and outputs, whose tiles are 16 wide."""
    return _up(head_dim, 16)


def _state_bytes(head_dim: int) -> int:
    """Maxima, sums and outputs of one tile of query rows."""
    return TILE_ROWS * 4 * (2 + _columns(head_dim))


def _local_scratch(head_dim: int, kv: KvFormat, target: Target) -> int:
    """Scores, queries, a vector for each row, states."""
    query_bytes = _query_bytes(head_dim, kv, target)
    return SCORES_BYTES + TILE_ROWS * (ITEM_TILES * query_bytes + LINE) + (ITEM_TILES + 1) * _state_bytes(head_dim)


def _query_bytes(head_dim: int, kv: KvFormat, target: Target) -> int:
    """Of one row: float32, bf16, or two planes of bytes with a scale and what their sums begin with."""
    if kv == KV_INT8:
        return 4 * _columns(head_dim) if target.isa == "avx2" else 2 * _up(head_dim, 64) + 12
    return _up(head_dim, 32) * (2 if target.isa in ("avx512_bf16", "amx") else 4)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
