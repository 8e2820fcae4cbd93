"""Norms and gated linears that write e4m3 codes for the linears that read them: in emulation, and when they do."""

import dataclasses
from unittest import mock

import pytest
import torch
from as_multiplied import in_e4m3
from emulated_gpu import SEEDS, TARGET, compile_emulated, run_emulated
from nodes import BF16, F32, gated_and_readers, norm_and_readers
from test_cublas_linear import ALWAYS, run_with_cublas

from slipway.plugins.linear import by_cublas
from slipway.plugins.linear import plugin as linear
from slipway.plugins.linear.pack_cuda import _bytes
from slipway.plugins.rms_norm import plugin as rms_norm
from slipway.quantization import floats
from slipway.quantization.formats import BF16 as BF16_WEIGHTS
from slipway.quantization.formats import FP8, round_trip

pytestmark = [  # with --gpu; without it, in emulation
    pytest.mark.gpu,
    pytest.mark.skipif("e4m3" not in TARGET.gpu.factors, reason="tensor cores that do not multiply e4m3"),
]


def run_norm(op, norm, rows, captured_rows, seed=0, library=None, **options):
    """-> what the norm should be, and what it writes, in bf16 or as codes."""
    kernel = rms_norm.PLUGIN.lower(norm, ALWAYS)
    library = library or compile_emulated([kernel])
    columns = norm.args[0].meta["val"].shape[1]
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(rows, columns, generator=generator).bfloat16() * 3, torch.randn(columns, generator=generator)
    residual = torch.randn(rows, columns, generator=generator)
    if rows > 6:
        x[3], residual[3], x[6, columns // 2] = 0, 0, torch.nan
    inputs, outputs = [x], [torch.full((rows, columns), torch.nan).bfloat16()]
    if op == "add_rms_norm":
        inputs, outputs = [x, residual], [*outputs, torch.full((rows, columns), torch.nan)]
    run_emulated(library, kernel, inputs, outputs, [kernel.weights[0].pack(weight)], seed=seed, captured_rows=captured_rows, **options)
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
    assert codes_are_right(*run_norm(op, norm, 19, 24, seed))


def codes_are_right(want, coded):
    values, scales = decoded(coded)
    good = [row for row in range(len(want)) if row != 6]  # to the nearest code: half of three bits, half of the smallest step
    near = (values - want)[good].abs() <= torch.maximum(want[good].abs() * 2**-4, scales[good] * 2**-10) * 1.0001
    scaled = torch.isclose(scales, want.abs().amax(1, keepdim=True) / 448, rtol=1e-5, atol=0, equal_nan=True)
    return near.all() and scaled.all() and values[3].count_nonzero() == 0 and values[6].isnan().all()


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
    out = run_with_cublas(kernel, [coded], captured_rows, F32, [kernel.weights[0].pack(weight)], 40)
    want = decoded(coded)[0].double() @ round_trip(weight, FP8).double().T
    torch.testing.assert_close(out.double(), want, rtol=2e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("rows, captured_rows", [(17, 17), (19, 32), (5, 300)])
@pytest.mark.parametrize("fmt", [FP8, BF16_WEIGHTS], ids=str)
@pytest.mark.parametrize("outputs", [64, 2112])  # more than the threads of a block finish at once
def test_a_gated_linear_finishes_as_codes(outputs, fmt, rows, captured_rows):
    gated, _ = gated_and_readers(outputs, 104, fmt, (32, FP8))
    kernel = linear.PLUGIN.lower(gated, ALWAYS)
    assert kernel.launches[-1].function == f"{kernel.symbol}_codes" and (fmt == BF16_WEIGHTS or len(kernel.launches) == 5)
    weights = [torch.randn(gated.args[1].meta["val"].shape, generator=torch.Generator().manual_seed(i)) * 0.2 for i in (1, 2)]
    x = torch.randn(rows, weights[0].shape[1], generator=torch.Generator().manual_seed(3)).bfloat16()
    x[2] = 0
    packed = [kernel.weights[0].pack(*weights)]
    values, scales = decoded(run_with_cublas(kernel, [x], captured_rows, BF16, packed, outputs))
    held, taken = [round_trip(w, fmt) for w in weights], in_e4m3(x.float()) if fmt == FP8 else x.float()
    want = torch.nn.functional.silu(taken @ held[0].T) * (taken @ held[1].T)
    want[2] = 0
    torch.testing.assert_close(scales, want.abs().amax(1, keepdim=True) / 448, rtol=2e-2, atol=0)
    assert ((values - want).abs() <= torch.maximum(want.abs() * 2**-4, scales * 2**-10) + 2e-2 * want.abs() + 2e-3 * want.abs().mean()).all()


def test_when_a_gated_linear_writes_codes():
    def launches(target, rows, fmt=FP8, outputs=64):
        gated, (reader,) = gated_and_readers(outputs, 96, fmt, (32, FP8))
        kernels = [linear.PLUGIN.lower(node, target) for node in (gated, reader)]
        return [[launch.function.removeprefix(kernel.symbol) for launch in kernel.launches if launch.takes_part(rows)] for kernel in kernels]

    assert launches(ALWAYS, 17) == [["_quantize", "cublasLtMatmul", "_codes"], ["cublasLtMatmul", "_finish"]]
    assert launches(ALWAYS, 16) == [["_upto16"], ["_upto16"]]
    assert launches(ALWAYS, 17, outputs=72) == [["_quantize", "cublasLtMatmul", "_finish"], ["_quantize", "cublasLtMatmul", "_finish"]]
    with mock.patch.object(by_cublas, "_measured", lambda: {"sm90": {"gated 64 x 96 fp8": 32, "32 x 64 fp8": 100}}):
        sooner = dataclasses.replace(ALWAYS, kind="sm90", cublas=None)
        assert launches(sooner, 99) == [["_quantize", "cublasLtMatmul", "_finish"], ["_many"]]
        assert launches(sooner, 100) == [["_quantize", "cublasLtMatmul", "_codes"], ["cublasLtMatmul", "_finish"]]
    with mock.patch.object(by_cublas, "_measured", lambda: {"sm90": {"gated 64 x 96 fp8": 101, "32 x 64 fp8": 100}}):
        assert launches(sooner, 101) == [["_quantize", "cublasLtMatmul", "_finish"], ["_quantize", "cublasLtMatmul", "_finish"]]


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
    with mock.patch.object(by_cublas, "_measured", lambda: {TARGET.kind: {"32 x 192 fp8": 64, "48 x 192 fp8": 128}}):
        target = dataclasses.replace(TARGET, cublas=None)
        norms = [norm_and_readers("rms_norm", 192, (outputs, FP8))[0] for outputs in (32, 48)]
        assert [linear.codes_from(norm, target) for norm in norms] == [64, 128]
        assert len({rms_norm.PLUGIN.lower(norm, target).symbol for norm in norms}) == 2  # launches of a symbol are those of one kernel
    assert from_rows((32, FP8)) == 17 and from_rows((32, FP8), target=later) == 300 and from_rows((32, FP8), op="rms_norm") == 17
    assert from_rows((32, FP8), (64, FP8)) == 17
    assert from_rows((32, FP8), (64, BF16_WEIGHTS)) is None  # someone reads numbers
    assert from_rows((32, BF16_WEIGHTS)) is None and from_rows() is None
    assert from_rows((32, FP8), inputs=200) is None  # codes would have no place for what fills a chunk
    assert from_rows((32, FP8), target=dataclasses.replace(TARGET, cublas=0)) is None
