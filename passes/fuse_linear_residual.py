"""linear(x, w, b) + residual  ->  linear_residual(x, w, b, residual)

A GPU's kernels add the residual as they write: the stream is then read and written once by the linear and read once by the norm after it, 14 bytes
a number of what is 18 with add_rms_norm.

For GPUs. After merge_qkv_linears and gather_logit_rows, which know plain ops only; before fuse_add_rms_norm, which takes what is left.
"""

from __future__ import annotations

from slipway.compiler.ops import Value, op
from slipway.passes.rewrite import Rewrite


class FuseLinearResidual(Rewrite):
    belongs_to = "aten::linear"

    def before(self, x, weight, bias, residual):
        return op.add(op.linear(x, weight, bias), residual)

    def after(self, x, weight, bias, residual):
        return op.linear_residual(x, weight, bias, residual)

    def unless(self, x, weight, residual):
        if not isinstance(residual, Value):
            return "a number is added"
        if not weight.is_constant:
            return "the weight is not a constant"
        if list(residual.shape) != [x.shape[0], weight.shape[0]]:
            return f"the add broadcasts {list(residual.shape)}"
        return None
