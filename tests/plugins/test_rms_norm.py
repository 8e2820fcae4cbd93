import functools

import pytest
import torch
from kernel_harness import HOST_TARGETS, run_kernel
from nodes import BF16, F32, call_node, compile_together

from slipway.plugins.rms_norm.plugin import PLUGIN, add_rms_norm, head_rms_norm, rms_norm

OPS = {
    "rms_norm": torch.ops.slipway.rms_norm.default,
    "add_rms_norm": torch.ops.slipway.add_rms_norm.default,
    "head_rms_norm": torch.ops.slipway.head_rms_norm.default,
}
every_target = pytest.mark.parametrize("target", HOST_TARGETS, ids=str)


def node(op, columns, source, storage, group=None, eps=1e-6, plus_one=False, weighted=True):
    x, weight = torch.zeros(2, columns, dtype=source), torch.zeros(group or columns) if weighted else None
    activations = (x, torch.zeros(2, columns)) if op == "add_rms_norm" else (x,)
    return call_node(OPS[op], *activations, weight, eps, plus_one, storage=storage)


NODES = {
    "wide": node("rms_norm", 1024, F32, BF16),
    "odd_width": node("rms_norm", 200, BF16, BF16, plus_one=True),
    "unweighted": node("rms_norm", 40, F32, F32, eps=1e-5, weighted=False),
    "add_f32": node("add_rms_norm", 72, F32, (BF16, F32)),
    "add_bf16": node("add_rms_norm", 72, BF16, (BF16, F32)),
    **{f"head_{n}": node("head_rms_norm", 3 * n, F32, F32, group=n, plus_one=True) for n in (16, 24, 128)},
}


@functools.cache
def lowered(target):
    kernels = {name: PLUGIN.lower(n, target) for name, n in NODES.items()}
    return kernels, compile_together(kernels.values(), target)


def run(target, name, *inputs, weight=None, threads=2):
    kernels, library = lowered(target)
    kernel = kernels[name]
    outputs = [torch.full(inputs[0].shape, torch.nan, dtype=d) for d in kernel.output_dtypes]
    weights = [w.pack(weight) for w in kernel.weights]
    run_kernel(library, kernel.symbol, inputs, outputs, weights, threads=threads)
    return outputs


def assert_close(got, want, dtype):
    torch.testing.assert_close(got.float(), want.float(), rtol=torch.finfo(dtype).eps, atol=2e-6)


@every_target
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_norm_equals_meaning(target, rows, threads):
    x, weight = torch.randn(rows, 1024) * 3, torch.randn(1024)
    (got,) = run(target, "wide", x, weight=weight, threads=threads)
    assert_close(got, rms_norm(x, weight, 1e-6, False), BF16)


@every_target
def test_norm_plus_one_of_an_odd_width(target):
    x, weight = torch.randn(7, 200).bfloat16(), torch.randn(200)
    (got,) = run(target, "odd_width", x, weight=weight)
    assert_close(got, rms_norm(x.float(), weight, 1e-6, True), BF16)


@every_target
def test_norm_without_weight(target):
    x = torch.randn(7, 40)
    assert not lowered(target)[0]["unweighted"].weights
    assert_close(run(target, "unweighted", x)[0], rms_norm(x, None, 1e-5, False), F32)


@every_target
@pytest.mark.parametrize("name, source", [("add_f32", F32), ("add_bf16", BF16)])
def test_add_norm_equals_meaning(target, name, source):
    x, residual, weight = torch.randn(9, 72).to(source), torch.randn(9, 72), torch.randn(72)
    normed, total = run(target, name, x, residual, weight=weight)
    want_normed, want_total = add_rms_norm(x.float(), residual, weight, 1e-6, False)
    assert torch.equal(total, want_total)
    assert_close(normed, want_normed, BF16)


@every_target
@pytest.mark.parametrize("head_dim", [16, 24, 128])
def test_head_norm_of_a_column_range(target, head_dim):
    merged, weight = torch.randn(6, 5 * head_dim), torch.randn(head_dim)
    x = merged[:, head_dim : 4 * head_dim]
    (got,) = run(target, f"head_{head_dim}", x, weight=weight, threads=3)
    assert_close(got, head_rms_norm(x, weight, 1e-6, True), F32)


def test_symbol_says_what_differs():
    nodes = [node("rms_norm", 32, F32, storage, eps=eps) for eps in (1e-5, 1e-6) for storage in (BF16, F32)]
    symbols = [PLUGIN.lower(n, HOST_TARGETS[0]).symbol for n in nodes]
    assert len(set(symbols)) == 4 and symbols[0] == "rms_norm_32_32_float_bf16_1em05"
