"""The CUDA kernels that work on rows, in emulation: norms, activations, embedding, gather."""

import functools

import pytest
import torch
from emulated_gpu import SEEDS, TARGET, compile_emulated, run_emulated
from kernel_harness import make_batch
from nodes import BF16, F32, call_node

from slipway.plugins.embedding import plugin as embedding
from slipway.plugins.gated_activation import plugin as gated_activation
from slipway.plugins.gather_columns import plugin as gather_columns
from slipway.plugins.gather_rows import plugin as gather_rows
from slipway.plugins.rms_norm import plugin as rms_norm

pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation
OPS = torch.ops.slipway
every_seed = pytest.mark.parametrize("seed", SEEDS)


@functools.cache
def kernels():
    """Each of the kernels by a name, and the library of all."""
    norm, add_norm, head_norm = OPS.rms_norm.default, OPS.add_rms_norm.default, OPS.head_rms_norm.default
    nodes = {
        "wide": call_node(norm, torch.zeros(2, 1024), torch.zeros(1024), 1e-6, False, storage=BF16),
        "widest": call_node(norm, torch.zeros(2, 5120), torch.zeros(5120), 1e-6, False, storage=BF16),
        "odd": call_node(norm, torch.zeros(2, 200).bfloat16(), torch.zeros(200), 1e-6, True, storage=BF16),
        "unweighted": call_node(norm, torch.zeros(2, 40), None, 1e-5, False, storage=F32),
        "add": call_node(add_norm, torch.zeros(2, 72).bfloat16(), torch.zeros(2, 72), torch.zeros(72), 1e-6, False, storage=(BF16, F32)),
        "heads": call_node(head_norm, torch.zeros(2, 72), torch.zeros(24), 1e-6, True, storage=F32),
    }
    lowered = {name: rms_norm.PLUGIN.lower(node, TARGET) for name, node in nodes.items()}
    for name in gated_activation.ACTIVATIONS:
        lowered[name] = gated_activation.PLUGIN.lower(call_node(OPS.gated_activation.default, torch.zeros(2, 600), name, storage=BF16), TARGET)
    ids = torch.zeros(2, dtype=torch.int32)
    lowered["embedding"] = embedding.PLUGIN.lower(call_node(OPS.embedding.default, ids, torch.zeros(50, 264), storage=F32), TARGET)
    lowered["gather"] = gather_rows.PLUGIN.lower(call_node(OPS.gather_rows.default, torch.zeros(9, 264), ids, storage=BF16), TARGET)
    order = torch.arange(264).flip(0)
    lowered["columns"] = gather_columns.PLUGIN.lower(call_node(OPS.gather_columns.default, torch.zeros(9, 264).bfloat16(), order, storage=BF16), TARGET)
    return lowered, compile_emulated(lowered.values())


def run(name, rows, *inputs, weights=(), **options):
    lowered, library = kernels()
    kernel = lowered[name]
    columns = inputs[0].shape[1] if inputs else 264
    columns //= 2 if name in gated_activation.ACTIVATIONS else 1
    outputs = [torch.full((rows, columns), torch.nan, dtype=dtype) for dtype in kernel.output_dtypes]
    run_emulated(library, kernel, inputs, outputs, [w.pack(value) for w, value in zip(kernel.weights, weights)], **options)
    return outputs


def assert_close(got, want, dtype):
    torch.testing.assert_close(got.float(), want.float(), rtol=torch.finfo(dtype).eps, atol=2e-6)


@every_seed
@pytest.mark.parametrize("name, columns", [("wide", 1024), ("widest", 5120)])
def test_norm_equals_meaning(seed, name, columns):
    x, weight = torch.randn(5, columns) * 3, torch.randn(columns)
    (got,) = run(name, 5, x, weights=[weight], seed=seed, captured_rows=8)
    assert_close(got, rms_norm.rms_norm(x, weight, 1e-6, False), BF16)


@every_seed
def test_norm_of_odd_widths(seed):
    x, weight = torch.randn(7, 200).bfloat16(), torch.randn(200)
    assert_close(run("odd", 7, x, weights=[weight], seed=seed)[0], rms_norm.rms_norm(x.float(), weight, 1e-6, True), BF16)
    x = torch.randn(7, 40)
    assert_close(run("unweighted", 7, x, seed=seed)[0], rms_norm.rms_norm(x, None, 1e-5, False), F32)


@every_seed
def test_add_norm_equals_meaning(seed):
    x, residual, weight = torch.randn(9, 72).bfloat16(), torch.randn(9, 72), torch.randn(72)
    normed, total = run("add", 9, x, residual, weights=[weight], seed=seed)
    want_normed, want_total = rms_norm.add_rms_norm(x.float(), residual, weight, 1e-6, False)
    assert torch.equal(total, want_total)
    assert_close(normed, want_normed, BF16)


def test_head_norm_of_a_column_range():
    merged, weight = torch.randn(6, 120), torch.randn(24)
    x = merged[:, 24:96]
    assert_close(run("heads", 6, x, weights=[weight])[0], rms_norm.head_rms_norm(x, weight, 1e-6, True), F32)


@pytest.mark.parametrize("activation", gated_activation.ACTIVATIONS)
def test_gated_activation_equals_meaning(activation):
    x = torch.randn(5, 600) * 3
    assert_close(run(activation, 5, x, captured_rows=16)[0], gated_activation.gated_activation(x, activation), BF16)


@every_seed
def test_embedding_equals_meaning(seed):
    ids, table = torch.tensor([49, 0, 7], dtype=torch.int32), torch.randn(50, 264).bfloat16()
    batch = make_batch(token_ids=ids.numpy(), cu_seqlens=[0, 3])
    assert torch.equal(run("embedding", 3, weights=[table], batch=batch, seed=seed, captured_rows=4)[0], table[ids.long()].float())


@every_seed
def test_gather_equals_meaning(seed):
    x, rows = torch.randn(9, 264), torch.tensor([8, 0, 3, 3, 5], dtype=torch.int32)
    batch = make_batch(logit_rows=rows.numpy())
    batch.num_tokens = 5  # the harness counts rows in tokens
    assert torch.equal(run("gather", 5, x, batch=batch, seed=seed)[0], x[rows.long()].bfloat16())


@every_seed
def test_columns_in_another_order(seed):
    x, order = torch.randn(5, 264).bfloat16(), torch.randperm(264, generator=torch.Generator().manual_seed(1))
    (got,) = run("columns", 5, x, weights=[order], seed=seed, captured_rows=8)
    assert torch.equal(got, gather_columns.gather_columns(x, order))
