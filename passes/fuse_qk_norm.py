"""attention(head_rms_norm(q, qw), head_rms_norm(k, kw), v)  ->  attention(q, k, v, q_norm=qw, k_norm=kw)

The attention kernel norms each head of q and k where it lies.

After fuse_rotary, which takes the rotation between norm and attention away.
"""

from __future__ import annotations

from slipway.compiler.ops import op
from slipway.passes.rewrite import Rewrite


class FuseQkNorm(Rewrite):
    def before(self, q, k, qw, kw, eps, plus_one, head_dim, **attention):
        q, k = op.head_rms_norm(q, qw, eps, plus_one), op.head_rms_norm(k, kw, eps, plus_one)
        return op.paged_attention(q=q, k=k, q_norm=None, k_norm=None, head_dim=head_dim, **attention)

    def after(self, q, k, qw, kw, eps, plus_one, head_dim, **attention):
        norms = {"q_norm": qw, "k_norm": kw, "norm_eps": eps, "norm_plus_one": plus_one}
        return op.paged_attention(q=q, k=k, head_dim=head_dim, **attention | norms)

    def unless(self, qw, kw, head_dim):
        if (qw.shape, kw.shape) != ((head_dim,), (head_dim,)):
            return f"the norms' weights are {list(qw.shape)} and {list(kw.shape)}, heads have {head_dim} columns"
        return None
