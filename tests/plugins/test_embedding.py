import pytest
import torch
from kernel_harness import HOST_TARGETS, compile_kernel, make_batch, run_kernel
from nodes import BF16, F32, call_node

from slipway.plugins.embedding.plugin import PLUGIN, embedding


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("columns, storage", [(40, F32), (1024, BF16)])
def test_equals_meaning(target, columns, storage):
    ids, table = torch.tensor([4, 0, 6, 6, 1], dtype=torch.int32), torch.randn(7, columns)
    kernel = PLUGIN.lower(call_node(torch.ops.slipway.embedding.default, ids, table, storage=storage), target)
    packed = kernel.weights[0].pack(table)
    batch = make_batch(token_ids=ids.numpy(), cu_seqlens=[0, 5])
    for threads in (1, 2, 3):
        out = torch.full((5, columns), torch.nan, dtype=storage)
        run_kernel(compile_kernel(kernel.source, target), kernel.symbol, [], [out], [packed], batch, threads)
        assert torch.equal(out.float(), embedding(ids, table.bfloat16()).float())


def test_costs_one_table_row_a_token():
    node = call_node(torch.ops.slipway.embedding.default, torch.tensor([0]), torch.randn(7, 64), storage=F32)
    assert PLUGIN.lower(node, HOST_TARGETS[0]).cost.token_bytes == 64 * (2 + 4)
