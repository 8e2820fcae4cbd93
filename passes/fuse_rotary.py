"""attention(rotary(q, rotary_table(positions, table)), rotary(k, same), v)  ->  attention(q, k, v, rope=table)

The attention kernel rotates each head where it lies, while it writes K to the cache: no rotated copy of q and k.

Before fuse_qk_norm: the model norms first and rotates then, so the rotation is the outer of the two.
"""

from __future__ import annotations

from slipway.compiler.ops import op
from slipway.passes.rewrite import Rewrite


class FuseRotary(Rewrite):
    def before(self, q, k, cos_sin, positions, head_dim, interleaved, rope_interleaved, **attention):
        q, k = (op.rotary(x, cos_sin, head_dim, interleaved) for x in (q, k))
        return op.paged_attention(q=q, k=k, rope=None, rope_interleaved=rope_interleaved, positions=positions, head_dim=head_dim, **attention)

    def after(self, q, k, cos_sin, positions, head_dim, interleaved, **attention):
        rope = {"rope": cos_sin.argument("table"), "rope_interleaved": interleaved}
        return op.paged_attention(q=q, k=k, positions=positions, head_dim=head_dim, **rope, **attention)

    def unless(self, cos_sin, positions, q_norm):
        if not cos_sin.is_op("slipway::rotary_table"):
            return "the angles are not rows of a table"
        if cos_sin.argument("positions") != positions:
            return "the rotation is by other positions than the attention's"
        if q_norm is not None:
            return "the attention norms before it rotates, the graph after"
        return None
