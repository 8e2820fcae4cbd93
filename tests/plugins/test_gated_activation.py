import functools

import pytest
import torch
from kernel_harness import HOST_TARGETS, run_kernel
from nodes import BF16, F32, call_node, compile_together

from slipway.plugins.gated_activation.plugin import ACTIVATIONS, PLUGIN, gated_activation

COLUMNS = 280


@functools.cache
def lowered(target):
    op, x = torch.ops.slipway.gated_activation.default, torch.randn(2, 2 * COLUMNS)
    nodes = {(a, t): call_node(op, x.to(t), a, storage=BF16) for a in ACTIVATIONS for t in (F32, BF16)}
    kernels = {case: PLUGIN.lower(node, target) for case, node in nodes.items()}
    return kernels, compile_together(kernels.values(), target)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("source", [F32, BF16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_meaning(target, source, activation):
    kernels, library = lowered(target)
    x = (torch.randn(5, 2 * COLUMNS) * 4).to(source)
    x[0, :4] = torch.tensor([0, -200, 200, -0.01])
    for threads in (1, 2, 3):
        out = torch.full((5, COLUMNS), torch.nan, dtype=BF16)
        run_kernel(library, kernels[activation, source].symbol, [x], [out], threads=threads)
        torch.testing.assert_close(out.float(), gated_activation(x.float(), activation), rtol=2**-8, atol=1e-5)


def test_declines_an_unknown_activation():
    node = call_node(torch.ops.slipway.gated_activation.default, torch.randn(2, 64), "relu", storage=BF16)
    node.args = (node.args[0], "swish7")
    assert PLUGIN.supports(node, HOST_TARGETS[0]) == "activation 'swish7': only silu, gelu, gelu_tanh, relu"
