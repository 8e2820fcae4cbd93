"""act(x[:, :n]) * x[:, n:]  ->  gated_activation(x, act)

For gate and up that come from one linear: Phi-3's, and those that merge_qkv_linears has merged because fuse_gated_linear
declined them.

After fuse_gated_linear and merge_qkv_linears.
"""

from __future__ import annotations

from slipway.compiler.ops import activate, op
from slipway.passes.rewrite import Rewrite
from slipway.plugins.gated_activation.plugin import ACTIVATIONS


class FuseGatedActivation(Rewrite):
    def __init__(self, activation: str):
        self.activation = activation

    def before(self, x, middle, end):
        return op.mul(activate(self.activation, op.slice(x, 1, 0, middle)), op.slice(x, 1, middle, end))

    def after(self, x):
        return op.gated_activation(x, self.activation)

    def unless(self, x, middle, end):
        if not x.shape[1] == end == 2 * middle:
            return f"the halves are columns 0 to {middle} and {middle} to {end} of {x.shape[1]}"
        return None


FUSE_GATED_ACTIVATION = tuple(map(FuseGatedActivation, ACTIVATIONS))
