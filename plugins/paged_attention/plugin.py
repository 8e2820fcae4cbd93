"""slipway::paged_attention on a CPU: norm, rotation, KV write and attention over the paged cache in one call."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from slipway.compiler.ops import is_op
from slipway.compiler.target import Target
from slipway.plugins.paged_attention import meaning as meaning  # registers the ops
from slipway.plugins.plugin import Cost, Kernel, PackedWeight
from slipway.plugins.rendering import CPP_TYPES, render, symbol
from slipway.plugins.rms_norm.plugin import packed_scale
from slipway.quantization.formats import KV_BF16, KV_INT8, KvFormat

BLOCK_SIZE = 32  # tokens a KV block: block_size of layout.hpp
TILE_ROWS = 32  # query rows multiplied at a time; as in layout.hpp, like all below
ITEM_TILES = 4
CHUNK = 512  # cached tokens between two merges
SCORES_BYTES = CHUNK // 16 * (TILE_ROWS + 1) * 64
SLOTS = 128
LINE = 64  # bytes
CACHES = {KV_BF16: "Bf16Cache", KV_INT8: "Int8Cache"}  # the format's class in C++


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

    @property
    def rotary_dim(self) -> int:
        return 2 * self.rope.meta["val"].shape[2] if self.rope is not None else 0

    def kv_bytes(self, kv: KvFormat) -> int:
        """Of one cached token."""
        return 2 * self.num_kv_heads * kv.token_bytes(self.head_dim)

    def block_bytes(self, kv: KvFormat) -> int:
        return BLOCK_SIZE * self.num_kv_heads * (kv.token_bytes(self.head_dim) + kv.token_bytes(_columns(self.head_dim)))


class PagedAttentionPlugin:
    ops = ("slipway::paged_attention",)

    def supports(self, node: Node, target: Target) -> str | None:
        a = Arguments(*node.args)
        if target.kind != "cpu":
            return f"no kernel for {target}"
        if not 16 <= a.head_dim <= 256 or a.head_dim % 8:
            return f"head_dim {a.head_dim}: only multiples of 8 from 16 to 256"
        if a.num_heads % a.num_kv_heads:
            return f"{a.num_heads} heads do not share {a.num_kv_heads} KV heads evenly"
        if (columns := a.v.meta["val"].shape[1]) != a.num_kv_heads * a.head_dim:
            return f"values of {columns} columns, not num_kv_heads * head_dim = {a.num_kv_heads * a.head_dim}"
        if a.rotary_dim > a.head_dim:
            return f"a rotary table for {a.rotary_dim} dimensions and heads of {a.head_dim}"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        a = Arguments(*node.args)
        inputs, dtype, kv = (a.q, a.k, a.v), node.meta["storage"], node.meta.get("kv_format", KV_BF16)
        sources = [x.meta["storage"] for x in inputs]
        shape = {
            "heads": a.num_heads,
            "kv_heads": a.num_kv_heads,
            "head_dim": a.head_dim,
            "rotary_dim": a.rotary_dim,
            "interleaved": int(a.rope_interleaved),
            "norms_q": int(a.q_norm is not None),
            "norms_k": int(a.k_norm is not None),
            "norm_eps": a.norm_eps,
            "scale": a.scale,
            "window": a.window or 0,
            "softcap": a.softcap or 0.0,
            "only_wanted": int(_is_read_at_logit_rows_alone(node)),
        }
        types = {name: CPP_TYPES[t] for name, t in zip(("Query", "Key", "Value", "Out"), (*sources, dtype))}
        slots_bytes, local_bytes = SLOTS * (LINE + _state_bytes(a.head_dim)), _local_scratch(a.head_dim, kv, target)
        name = symbol("paged_attention", *shape.values(), *types.values(), kv.name)
        return Kernel(
            symbol=name,
            source=render(__file__, symbol=name, Cache=CACHES[kv], local_bytes=local_bytes, slots_bytes=slots_bytes, **shape, **types),
            inputs=inputs,
            output_dtypes=(dtype,),
            weights=self._weights(a),
            shared_scratch=slots_bytes,
            local_scratch=local_bytes,
            kv_layer=a.layer,
            positions=a.rope.meta["val"].shape[0] if a.rope is not None else None,
            kv_block_bytes=a.block_bytes(kv),
            cost=Cost(
                token_bytes=sum(x.meta["val"].shape[1] * t.itemsize for x, t in zip((*inputs, node), (*sources, dtype)))
                + a.kv_bytes(kv),
                kv_bytes=a.kv_bytes(kv),
                kv_flops=4 * a.num_heads * a.head_dim,
            ),
        )

    def _weights(self, a: Arguments) -> tuple[PackedWeight, ...]:
        norms = tuple(packed_scale(w, a.norm_plus_one) for w in (a.q_norm, a.k_norm) if w is not None)
        return norms + ((packed_scale(a.rope, plus_one=False),) if a.rope is not None else ())


def _is_read_at_logit_rows_alone(node: Node) -> bool:
    return bool(node.users) and all(is_op(user, "slipway::gather_rows") and user.args[1].name == "logit_rows" for user in node.users)


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


PLUGIN = PagedAttentionPlugin()
