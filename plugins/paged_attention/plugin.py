"""slipway::paged_attention: norm, rotation, KV write and attention over the paged cache in one call."""

from __future__ import annotations

from torch.fx import Node

from slipway.compiler.ops import is_op
from slipway.compiler.target import Target
from slipway.plugins.paged_attention import meaning as meaning  # registers the ops
from slipway.plugins.paged_attention.arguments import Arguments
from slipway.plugins.paged_attention.on_gpu import GpuAttention
from slipway.plugins.paged_attention.on_host import HostAttention
from slipway.plugins.plugin import Cost, Kernel, PackedWeight
from slipway.plugins.rendering import CPP_TYPES, render, symbol
from slipway.plugins.rms_norm.plugin import packed_scale
from slipway.quantization.formats import KV_BF16

class PagedAttentionPlugin:
    ops = ("slipway::paged_attention",)

    def supports(self, node: Node, target: Target) -> str | None:
        a = Arguments(*node.args)
        if not 16 <= a.head_dim <= 256 or a.head_dim % 8:
            return f"head_dim {a.head_dim}: only multiples of 8 from 16 to 256"
        if a.num_heads % a.num_kv_heads:
            return f"{a.num_heads} heads do not share {a.num_kv_heads} KV heads evenly"
        if (columns := a.v.meta["val"].shape[1]) != a.num_kv_heads * a.head_dim:
            return f"values of {columns} columns, not num_kv_heads * head_dim = {a.num_kv_heads * a.head_dim}"
        if a.rotary_dim > a.head_dim:
            return f"a rotary table for {a.rotary_dim} dimensions and heads of {a.head_dim}"
        if a.sinks is not None and tuple(a.sinks.meta["val"].shape) != (a.num_heads,):
            return f"sinks of shape {list(a.sinks.meta['val'].shape)}, not one of each of {a.num_heads} heads"
        return _on(target, a, node).declined

    def lower(self, node: Node, target: Target) -> Kernel:
        a = Arguments(*node.args)
        inputs, dtype, on = (a.q, a.k, a.v), node.meta["storage"], _on(target, a, node)
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
            "has_sinks": int(a.sinks is not None),
        }
        if not target.gpu:
            shape["only_wanted"] = int(_is_read_at_logit_rows_alone(node))
        types = {name: CPP_TYPES[t] for name, t in zip(("Query", "Key", "Value", "Out"), (*sources, dtype))}
        name = symbol("paged_attention", *shape.values(), *types.values(), on.kv.name)
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, **on.constants, **shape, **types),
            inputs=inputs,
            output_dtypes=(dtype,),
            weights=self._weights(a),
            shared_scratch=on.shared_scratch,
            shared_scratch_per_row=on.shared_scratch_per_row,
            local_scratch=on.local_scratch,
            launches=on.launches(name),
            counters=on.counters,
            kv_layer=a.layer,
            positions=a.rope.meta["val"].shape[0] if a.rope is not None else None,
            kv_block_bytes=on.block_bytes,
            cost=Cost(
                token_bytes=sum(x.meta["val"].shape[1] * t.itemsize for x, t in zip((*inputs, node), (*sources, dtype)))
                + a.kv_bytes(on.kv),
                kv_bytes=a.kv_bytes(on.kv),
                kv_flops=4 * a.num_heads * a.head_dim,
            ),
        )

    def _weights(self, a: Arguments) -> tuple[PackedWeight, ...]:
        norms = tuple(packed_scale(w, a.norm_plus_one) for w in (a.q_norm, a.k_norm) if w is not None)
        return norms + tuple(packed_scale(w, plus_one=False) for w in (a.rope, a.sinks) if w is not None)


def _on(target: Target, arguments: Arguments, node: Node) -> HostAttention | GpuAttention:
    return (GpuAttention if target.gpu else HostAttention)(arguments, node.meta.get("kv_format", KV_BF16), target)


def _is_read_at_logit_rows_alone(node: Node) -> bool:
    return bool(node.users) and all(is_op(user, "slipway::gather_rows") and user.args[1].name == "logit_rows" for user in node.users)


PLUGIN = PagedAttentionPlugin()
