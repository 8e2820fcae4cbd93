"""rms_norm(x + residual, w)  ->  add_rms_norm(x, residual, w): the norm, and the sum for whoever reads it

One kernel reads and writes the residual stream once instead of twice.

After gather_logit_rows, which moves the last gather above the last add.
"""

from __future__ import annotations

from slipway.compiler.ops import op
from slipway.passes.rewrite import Rewrite


class FuseAddRmsNorm(Rewrite):
    def before(self, x, residual, weight, eps, plus_one):
        total = op.add(x, residual)
        return op.rms_norm(total, weight, eps, plus_one), total

    def after(self, x, residual, weight, eps, plus_one):
        return op.add_rms_norm(x, residual, weight, eps, plus_one)

    def unless(self, x, residual):
        if x.shape != residual.shape:
            return f"the add broadcasts {list(residual.shape)} to {list(x.shape)}"
        return None
