import functools

import pytest
import torch
from kernel_harness import HOST_TARGETS, run_kernel
from nodes import BF16, F32, call_node, compile_together

from slipway.plugins.gather_columns.plugin import PLUGIN, gather_columns

TYPES = [(F32, F32), (BF16, BF16), (F32, BF16)]
COLUMNS = torch.randperm(72, generator=torch.Generator().manual_seed(0))[:70]


@functools.cache
def lowered(target):
    op, x = torch.ops.slipway.gather_columns.default, torch.randn(9, 72)
    kernels = {t: PLUGIN.lower(call_node(op, x.to(t[0]), COLUMNS, storage=t[1]), target) for t in TYPES}
    return kernels, compile_together(kernels.values(), target)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("types", TYPES)
def test_equals_meaning(target, types):
    (source, storage), (kernels, library) = types, lowered(target)
    (columns,) = kernels[types].weights
    for rows in (1, 2, 5):
        x = torch.randn(rows, 72).to(source)
        for threads in (1, 2, 3):
            out = torch.full((rows, 70), torch.nan, dtype=storage)
            run_kernel(library, kernels[types].symbol, [x], [out], [columns.pack(COLUMNS)], threads=threads)
            assert torch.equal(out, gather_columns(x, COLUMNS).to(storage))


def test_declines_columns_that_are_no_constant():
    node = call_node(torch.ops.slipway.gather_columns.default, torch.randn(9, 72), COLUMNS, storage=F32)
    assert PLUGIN.supports(node, HOST_TARGETS[0]) == "columns by %arg1, which is not a constant"
    node.args[1].meta["constant"] = True
    assert PLUGIN.supports(node, HOST_TARGETS[0]) is None
