"""The arguments of a slipway::paged_attention node, by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from slipway.quantization.formats import KvFormat

BLOCK_SIZE = 32  # tokens a KV block: block_size of layout.hpp, block_tokens of cuda/shape.cuh


@dataclass(frozen=True)
class Arguments:
    """The node's arguments by the names of the op's schema."""

    q: Node
    k: Node
    v: Node
    q_norm: Node | None
    k_norm: Node | None
    norm_eps: float
    norm_plus_one: bool
    rope: Node | None
    rope_interleaved: bool
    positions: Node
    cu_seqlens: Node
    kv_lens: Node
    block_table: Node
    kv_cache: Node
    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: Node | None

    @property
    def rotary_dim(self) -> int:
        return 2 * self.rope.meta["val"].shape[2] if self.rope is not None else 0

    def kv_bytes(self, kv: KvFormat) -> int:
        """Of one cached token."""
        return 2 * self.num_kv_heads * kv.token_bytes(self.head_dim)
