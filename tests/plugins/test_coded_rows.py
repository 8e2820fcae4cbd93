"""Norms that write e4m3 codes for the linears that read them: in emulation, and when they do."""

import dataclasses

import pytest
import torch
from emulated_gpu import SEEDS, TARGET, compile_emulated, run_emulated
from nodes import F32, norm_and_readers
from test_cublas_linear import ALWAYS, run_with_cublas

from slipway.plugins.linear import plugin as linear
from slipway.plugins.linear.pack_cuda import _bytes
from slipway.plugins.rms_norm import plugin as rms_norm
from slipway.quantization import floats
from slipway.quantization.formats import BF16 as BF16_WEIGHTS
from slipway.quantization.formats import FP8, round_trip

pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation


def run_norm(op, norm, rows, captured_rows, seed=0):
    """-> what the norm is given and what it writes, in bf16 or as codes."""
    kernel = rms_norm.PLUGIN.lower(norm, ALWAYS)
    columns = norm.args[0].meta["val"].shape[1]
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(rows, columns, generator=generator).bfloat16() * 3, torch.randn(columns, generator=generator)
    residual = torch.randn(rows, columns, generator=generator)
    if rows > 6:
        x[3], residual[3], x[6, columns // 2] = 0, 0, torch.nan
    inputs, outputs = [x], [torch.full((rows, columns), torch.nan).bfloat16()]
    if op == "add_rms_norm":
        inputs, outputs = [x, residual], [*outputs, torch.full((rows, columns), torch.nan)]
    run_emulated(compile_emulated([kernel]), kernel, inputs, outputs, [kernel.weights[0].pack(weight)], seed=seed, captured_rows=captured_rows)
    total = sum(part.float() for part in inputs)
    if len(outputs) > 1:
        torch.testing.assert_close(outputs[1], total, rtol=0, atol=0, equal_nan=True)
    return rms_norm.rms_norm(total, weight, 1e-6, False), outputs[0]


def decoded(rows):
    """bf16 rows that hold codes -> (numbers, scales)."""
    columns = rows.shape[1]
    held = rows.view(torch.uint8)
    order = _bytes(torch.arange(columns).view(1, -1)).flatten()
    codes, scales = torch.empty(len(rows), columns, dtype=torch.uint8), held[:, columns : columns + 4].contiguous().view(torch.float32)
    codes[:, order] = held[:, :columns]
    return floats.e4m3_values(codes) * scales, scales


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op, columns", [("rms_norm", 64), ("add_rms_norm", 192), ("add_rms_norm", 1088)])
def test_codes_equal_the_norm(op, columns, seed):
    norm, _ = norm_and_readers(op, columns, (32, FP8))
    want, got = run_norm(op, norm, 19, 24, seed)
    values, scales = decoded(got)
    torch.testing.assert_close(scales, want.abs().amax(1, keepdim=True) / 448, rtol=1e-5, atol=0, equal_nan=True)
    good = [row for row in range(19) if row != 6]  # to the nearest code: half of three bits, half of the smallest step
    error = (values - want)[good].abs()
    assert (error <= torch.maximum(want[good].abs() * 2**-4, scales[good] * 2**-10) * 1.0001).all()
    assert values[3].count_nonzero() == 0 and values[6].isnan().all()


def test_fewer_rows_are_bf16():
    norm, _ = norm_and_readers("add_rms_norm", 192, (32, FP8))
    want, got = run_norm("add_rms_norm", norm, 5, 16)
    torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("rows, captured_rows", [(17, 17), (19, 32)])
def test_a_linear_multiplies_codes(rows, captured_rows):
    norm, (reader,) = norm_and_readers("add_rms_norm", 192, (40, FP8))
    kernel = linear.PLUGIN.lower(reader, ALWAYS)
    assert [launch.function for launch in kernel.launches if launch.takes_part(captured_rows)] == ["cublasLtMatmul", f"{kernel.symbol}_finish"]
    _, coded = run_norm("add_rms_norm", norm, rows, captured_rows)
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(1))
    out = run_with_cublas(kernel, coded, captured_rows, F32, [kernel.weights[0].pack(weight)], 40)
    want = decoded(coded)[0].double() @ round_trip(weight, FP8).double().T
    torch.testing.assert_close(out.double(), want, rtol=2e-4, atol=2e-4, equal_nan=True)


def test_when_a_norm_writes_codes():
    def from_rows(*readers, inputs=192, target=ALWAYS, op="add_rms_norm"):
        norm, linears = norm_and_readers(op, inputs, *readers)
        found = linear.codes_from(norm, target)
        functions = [launch.function for launch in rms_norm.PLUGIN.lower(norm, target).launches]
        assert (found is not None) == any(name.endswith("_codes") for name in functions)
        for reader in linears:
            cublas = [launch for launch in linear.PLUGIN.lower(reader, target).launches if launch.matmul]
            assert not found or [launch.min_rows for launch in cublas] == [found]
        return found

    later = dataclasses.replace(TARGET, cublas=300)
    assert from_rows((32, FP8)) == 17 and from_rows((32, FP8), target=later) == 300 and from_rows((32, FP8), op="rms_norm") == 17
    assert from_rows((32, FP8), (64, FP8)) == 17
    assert from_rows((32, FP8), (64, BF16_WEIGHTS)) is None  # someone reads numbers
    assert from_rows((32, BF16_WEIGHTS)) is None and from_rows() is None
    assert from_rows((32, FP8), inputs=200) is None  # codes would have no place for what fills a chunk
    assert from_rows((32, FP8), target=dataclasses.replace(TARGET, cublas=0)) is None
