"""act(linear(x, gate)) * linear(x, up)  ->  gated_linear(x, gate, up, act)

The kernel multiplies a panel of gate and the same panel of up at once: neither product is written to memory.

Before merge_qkv_linears, which would merge the two linears into one, and before fuse_gated_activation, which takes that one.
"""

from __future__ import annotations

from slipway.compiler.ops import Value, activate, op
from slipway.passes.rewrite import Rewrite
from slipway.plugins.gated_activation.plugin import ACTIVATIONS


class FuseGatedLinear(Rewrite):
    def __init__(self, activation: str):
        self.activation = activation

    def before(self, x, gate, up, gate_bias, up_bias):
        return op.mul(activate(self.activation, op.linear(x, gate, gate_bias)), op.linear(x, up, up_bias))

    def after(self, x, gate, up):
        return op.gated_linear(x, gate, up, self.activation)

    def unless(self, gate, up, gate_bias, up_bias):
        if gate_bias is not None or up_bias is not None:
            return "a bias is added before the product"
        if gate.shape != up.shape:
            return f"gate is {list(gate.shape)}, up {list(up.shape)}"
        if _formats(gate) != _formats(up):
            return "their weight formats differ"
        return None


def _formats(weight: Value) -> set[str]:
    """What the linears that read a weight are to store it as."""
    return {str(reader.meta.get("weight_format")) for reader in weight.node.users}


FUSE_GATED_LINEAR = tuple(map(FuseGatedLinear, ACTIVATIONS))
