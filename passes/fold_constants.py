"""linear(x, w, b) * c  ->  linear(x, w * c, b * c), and the same for / c and for embedding(ids, w)

Multipliers that a config states (Granite's, Gemma's embedding scale) cost nothing once they are in the weights. The
product is a constant subgraph: it is evaluated when that weight is packed.

Before the passes that fuse linears, which look for a linear where a multiplier stands.
"""

from __future__ import annotations

from slipway.compiler.ops import Value, op
from slipway.passes.rewrite import Rewrite


class _Scaled(Rewrite):
    """operation: "mul" or "div"."""

    def __init__(self, operation: str):
        self.operation = operation

    def scale(self, value: Value, factor: Value | float) -> Value:
        return getattr(op, self.operation)(value, factor)

    def unless(self, weight: Value, factor: Value | float) -> str | None:
        if not isinstance(weight, Value) or not weight.is_constant:
            return "the weight is not a constant"
        if isinstance(factor, Value) and (factor.shape or not factor.is_constant):
            return "the factor is not one constant number"
        return None


class FoldLinearScale(_Scaled):
    def before(self, x, weight, bias, factor):
        return self.scale(op.linear(x, weight, bias), factor)

    def after(self, x, weight, bias, factor):
        return op.linear(x, self.scale(weight, factor), None if bias is None else self.scale(bias, factor))


class FoldEmbeddingScale(_Scaled):
    def before(self, ids, weight, factor):
        return self.scale(op.embedding(ids, weight), factor)

    def after(self, ids, weight, factor):
        return op.embedding(ids, self.scale(weight, factor))


FOLD_CONSTANTS = tuple(rewrite(operation) for rewrite in (FoldLinearScale, FoldEmbeddingScale) for operation in ("mul", "div"))
