import functools

import pytest
import torch
from kernel_harness import HOST_TARGETS, make_batch, run_kernel
from nodes import BF16, F32, call_node, compile_together

from slipway.plugins.gather_rows.plugin import PLUGIN, gather_rows

TYPES = [(F32, F32), (BF16, BF16), (F32, BF16)]
ROWS = torch.tensor([8, 0, 3, 3, 5], dtype=torch.int32)


@functools.cache
def lowered(target):
    op, x = torch.ops.slipway.gather_rows.default, torch.randn(9, 72)
    kernels = {t: PLUGIN.lower(call_node(op, x.to(t[0]), ROWS, storage=t[1]), target) for t in TYPES}
    return kernels, compile_together(kernels.values(), target)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("types", TYPES)
def test_equals_meaning(target, types):
    (source, storage), (kernels, library) = types, lowered(target)
    x, batch = torch.randn(9, 72).to(source), make_batch(logit_rows=ROWS.numpy())
    for threads in (1, 2, 3):
        out = torch.full((5, 72), torch.nan, dtype=storage)
        run_kernel(library, kernels[types].symbol, [x], [out], (), batch, threads)
        assert torch.equal(out, gather_rows(x, ROWS).to(storage))


def test_declines_other_rows_and_other_values():
    op, target = torch.ops.slipway.gather_rows.default, HOST_TARGETS[0]
    node = call_node(op, torch.randn(9, 72), ROWS, storage=F32)
    assert PLUGIN.supports(node, target) == "rows by %arg1, not by the batch's logit_rows"
    node = call_node(op, torch.zeros(9, 72, dtype=torch.int32), ROWS, storage=torch.int32)
    node.args[1].name = "logit_rows"
    assert PLUGIN.supports(node, target) == "rows of torch.int32"
