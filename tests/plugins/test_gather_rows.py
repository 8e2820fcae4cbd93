import pytest
import torch
from kernel_harness import HOST_TARGETS, compile_kernel, make_batch, run_kernel
from nodes import BF16, F32, call_node

from slipway.plugins.gather_rows.plugin import PLUGIN, gather_rows


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("source, storage", [(F32, F32), (BF16, BF16), (F32, BF16)])
def test_equals_meaning(target, source, storage):
    x, rows = torch.randn(9, 72).to(source), torch.tensor([8, 0, 3, 3, 5], dtype=torch.int32)
    kernel = PLUGIN.lower(call_node(torch.ops.slipway.gather_rows.default, x, rows, storage=storage), target)
    for threads in (1, 2, 3):
        out = torch.full((5, 72), torch.nan, dtype=storage)
        batch = make_batch(logit_rows=rows.numpy())
        run_kernel(compile_kernel(kernel.source, target), kernel.symbol, [x], [out], (), batch, threads)
        assert torch.equal(out, gather_rows(x, rows).to(storage))
