import functools

import pytest
import torch
from kernel_harness import HOST_TARGETS, make_batch, run_kernel
from nodes import BF16, F32, call_node, compile_together

from slipway.plugins.embedding.plugin import PLUGIN, embedding

CASES = [(40, F32), (1024, BF16)]
IDS = torch.tensor([4, 0, 6, 6, 1], dtype=torch.int32)


@functools.cache
def lowered(target):
    op, tables = torch.ops.slipway.embedding.default, {columns: torch.randn(7, columns) for columns, _ in CASES}
    kernels = {c: PLUGIN.lower(call_node(op, IDS, tables[c[0]], storage=c[1]), target) for c in CASES}
    return kernels, tables, compile_together(kernels.values(), target)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("columns, storage", CASES)
def test_equals_meaning(target, columns, storage):
    kernels, tables, library = lowered(target)
    kernel, table = kernels[columns, storage], tables[columns]
    batch = make_batch(token_ids=IDS.numpy(), cu_seqlens=[0, 5])
    for threads in (1, 2, 3):
        out = torch.full((5, columns), torch.nan, dtype=storage)
        run_kernel(library, kernel.symbol, [], [out], [kernel.weights[0].pack(table)], batch, threads)
        assert torch.equal(out.float(), embedding(IDS, table.bfloat16()).float())


def test_declines_rows_by_other_numbers_than_token_ids():
    node = call_node(torch.ops.slipway.embedding.default, IDS, torch.randn(7, 64), storage=F32)
    assert PLUGIN.supports(node, HOST_TARGETS[0]) == "rows by %arg0, not by the batch's input_ids"
    node.args[0].name = "input_ids"
    assert PLUGIN.supports(node, HOST_TARGETS[0]) is None


def test_costs_one_table_row_a_token():
    node = call_node(torch.ops.slipway.embedding.default, IDS, torch.randn(7, 64), storage=F32)
    assert PLUGIN.lower(node, HOST_TARGETS[0]).cost.token_bytes == 64 * (2 + 4)
