import pytest
import torch
from kernel_harness import HOST_TARGETS, compile_kernel, run_kernel
from nodes import BF16, F32, call_node

from slipway.plugins.rms_norm.plugin import PLUGIN, add_rms_norm, head_rms_norm, rms_norm

ops = torch.ops.slipway


def run(node, target, *inputs, threads=2):
    """The node's outputs by its kernel; weights are packed from the values in the node's metadata."""
    kernel = PLUGIN.lower(node, target)
    columns = inputs[0].shape[1]
    outputs = [torch.full((len(inputs[0]), columns), torch.nan, dtype=d) for d in kernel.output_dtypes]
    weights = [w.pack(*(n.meta["val"] for n in w.nodes)) for w in kernel.weights]
    run_kernel(compile_kernel(kernel.source, target), kernel.symbol, inputs, outputs, weights, threads=threads)
    return outputs


def assert_close(got, want, dtype):
    torch.testing.assert_close(got.float(), want.float(), rtol=torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("rows, columns, source, plus_one", [(1, 64, F32, False), (5, 200, BF16, True), (33, 1024, F32, False)])
def test_norm_equals_meaning(target, rows, columns, source, plus_one):
    x, weight = torch.randn(rows, columns).to(source) * 3, torch.randn(columns)
    node = call_node(ops.rms_norm.default, x, weight, 1e-6, plus_one, storage=BF16)
    for threads in (1, 2, 3):
        (got,) = run(node, target, x, threads=threads)
        assert_close(got, rms_norm(x.float(), weight, 1e-6, plus_one), BF16)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
def test_norm_without_weight(target):
    x = torch.randn(7, 40)
    node = call_node(ops.rms_norm.default, x, None, 1e-5, False, storage=F32)
    assert not PLUGIN.lower(node, target).weights
    assert_close(run(node, target, x)[0], rms_norm(x, None, 1e-5, False), F32)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("source", [F32, BF16])
def test_add_norm_equals_meaning(target, source):
    x, residual, weight = torch.randn(9, 72).to(source), torch.randn(9, 72), torch.randn(72)
    node = call_node(ops.add_rms_norm.default, x, residual, weight, 1e-6, False, storage=(BF16, F32))
    normed, total = run(node, target, x, residual)
    want_normed, want_total = add_rms_norm(x.float(), residual, weight, 1e-6, False)
    assert torch.equal(total, want_total)
    assert_close(normed, want_normed, BF16)


@pytest.mark.parametrize("target", HOST_TARGETS, ids=str)
@pytest.mark.parametrize("head_dim", [16, 24, 128])
def test_head_norm_of_a_column_range(target, head_dim):
    merged, weight = torch.randn(6, 5 * head_dim), torch.randn(head_dim)
    x = merged[:, head_dim : 4 * head_dim]
    node = call_node(ops.head_rms_norm.default, x, weight, 1e-6, True, storage=F32)
    assert_close(run(node, target, x, threads=3)[0], head_rms_norm(x, weight, 1e-6, True), F32)


def test_symbol_says_what_differs():
    x, weight = torch.randn(2, 32), torch.randn(32)
    nodes = [call_node(ops.rms_norm.default, x, weight, eps, False, storage=s) for eps in (1e-5, 1e-6) for s in (BF16, F32)]
    symbols = [PLUGIN.lower(node, HOST_TARGETS[0]).symbol for node in nodes]
    assert len(set(symbols)) == 4 and symbols[0] == "rms_norm_32_32_float_bf16_1em05"
