"""Linears of many rows by cuBLASLt: the kernels around it in emulation, and the calls of the library, on a GPU or emulated with what it asks for."""

import dataclasses
import json

import pytest
import torch
from as_multiplied import AS_MULTIPLIED
from emulated_gpu import ON_GPU, TARGET, compile_emulated
from kernel_bench import Bench
from kernel_harness import Batch, Operand
from nodes import CODED_ACTIVATIONS, F32
from nodes import BF16 as BF16_STORAGE
from test_cuda_linear import Case

from slipway.compiler.target import GPUS, Target
from slipway.plugins.gated_activation.plugin import ACTIVATIONS
from slipway.plugins.linear import by_cublas
from slipway.plugins.linear.by_cublas import CublasLinear
from slipway.quantization.formats import BF16, FORMATS, FP8, NVFP4, round_trip

pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation
ALWAYS = dataclasses.replace(TARGET, cublas=17)
IN_FP4 = ALWAYS if ON_GPU else Target("sm100", cublas=17)
CASES = [
    Case(BF16, 72, 456, target=ALWAYS),
    Case(BF16, 72, 456, dtype=BF16_STORAGE, target=ALWAYS),
    Case(BF16, 40, 640, activation="silu", dtype=BF16_STORAGE, target=ALWAYS),
    Case(BF16, 80, 64, biased=True, target=ALWAYS),
    Case(FP8, 72, 456, target=ALWAYS),
    Case(FP8, 2088, 128, dtype=BF16_STORAGE, target=ALWAYS),  # more outputs than a block finishes
    Case(FP8, 40, 640, activation="gelu", dtype=BF16_STORAGE, target=ALWAYS),
    Case(FP8, 24, 256, source=F32, biased=True, target=ALWAYS),
    Case(BF16, 72, 456, adds=True, target=ALWAYS),
    Case(BF16, 72, 456, dtype=BF16_STORAGE, biased=True, adds=True, target=ALWAYS),
    Case(FP8, 2088, 128, adds=True, target=ALWAYS),
]
if "e2m1" in IN_FP4.gpu.factors:
    CASES += [
        Case(NVFP4, 72, 456, target=IN_FP4),  # a group in part
        Case(NVFP4, 2088, 128, dtype=BF16_STORAGE, target=IN_FP4),  # more outputs than a block finishes, scales of many pieces
        Case(NVFP4, 40, 4480, activation="silu", dtype=BF16_STORAGE, target=IN_FP4),  # more groups than a block quantizes at once
        Case(NVFP4, 24, 256, source=F32, biased=True, target=IN_FP4),
    ]


def meaning(case, rows):
    x = case.x[:rows].bfloat16().float()
    x = AS_MULTIPLIED[CODED_ACTIVATIONS.get(case.fmt, "bf16")](x)
    y = [x.double() @ round_trip(w, case.fmt).double().T for w in case.weights]
    y[0] += sum(part[:rows] if part.ndim == 2 else part for part in (case.bias, case.residual) if part is not None)
    return ACTIVATIONS[case.activation](y[0]) * y[1] if case.activation else y[0]


def run_with_cublas(kernel, inputs, captured_rows, dtype, packed, outputs):
    """inputs: [rows, columns] -> [rows, outputs]; a graph's other rows hold NaN."""
    images = compile_emulated([kernel])
    bench = Bench(images) if ON_GPU else Bench({launch.function: images._name for launch in kernel.launches}, 1)
    rows = len(inputs[0])
    given = [torch.cat([x, torch.full((captured_rows - rows, x.shape[1]), torch.nan, dtype=x.dtype)]) for x in inputs]
    out = bench.filled(captured_rows * outputs * dtype.itemsize)
    call = bench.call(
        kernel, bench.batch(Batch(num_tokens=rows)), [Operand(bench.put(x.view(torch.uint8).numpy()), x.shape[1] * x.itemsize) for x in given],
        [Operand(out, outputs * dtype.itemsize)], [bench.put(w) for w in packed], captured_rows,
    )  # fmt: skip
    bench.launch(kernel, call, {"rows": captured_rows, "tokens": captured_rows, "sequences": 1}, 1)
    bench.native.synchronize()
    return torch.frombuffer(bytearray(bench.native.read(out, rows * outputs * dtype.itemsize)), dtype=dtype).view(rows, outputs)


def run(case, rows, captured_rows):
    return run_with_cublas(case.kernel, case.inputs_of(rows), captured_rows, case.dtype, case.packed, case.outputs)


@pytest.mark.parametrize("rows, captured_rows", [(17, 17), (19, 32), (70, 72), (131, 150)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_meaning(case, rows, captured_rows):
    assert [launch.matmul is not None for launch in case.kernel.launches if launch.takes_part(captured_rows)].count(True) == 1
    want = meaning(case, rows)
    rtol = 2**-7 if case.dtype == BF16_STORAGE or case.activation else 2e-4
    torch.testing.assert_close(run(case, rows, captured_rows).double(), want, rtol=rtol, atol=rtol * float(want.abs().mean()))


@pytest.mark.parametrize("case", [case for case in CASES if case.fmt in CODED_ACTIVATIONS and case.outputs == 72], ids=str)
def test_a_row_of_zeros_and_those_that_are_not_finite(case):
    case = dataclasses.replace(case)
    case.x[3], case.x[5, 100], case.x[7, 100] = 0, torch.nan, -torch.inf
    out = run(case, 17, 17)
    assert (out[3] == 0).all() and out[[5, 7]].isnan().all() and not out[[0, 1, 2, 4, 6, *range(8, 17)]].isnan().any()


@pytest.mark.skipif("e2m1" not in IN_FP4.gpu.factors, reason="tensor cores that do not multiply e2m1")
def test_groups_much_smaller_than_the_largest_of_their_row():
    """Down to scales that e4m3 holds as a subnormal, or not at all. The largest group's weights are zeros, so that others alone count."""
    case = Case(NVFP4, 32, 128, target=IN_FP4)
    case.weights[0][:, :16] = 0
    case.x[:50, 16:] *= torch.exp2(-torch.arange(50.0) / 2)[:, None]
    case.x[2, 16:32] = 0
    found, want = run(case, 50, 50).double(), meaning(case, 50)
    assert (want[:30] != 0).all() and (want[48:] == 0).all()
    assert ((found - want).abs() <= 2e-4 * want.abs().mean(1, keepdim=True)).all()


def test_fewer_rows_are_our_own_kernels():
    launches = CASES[0].kernel.launches
    assert [launch.matmul for launch in launches if launch.takes_part(16)] == [None]
    assert all(launch.max_rows is not None and launch.max_rows <= 16 for launch in launches if not launch.matmul)


LLAMA = {"o": (4096, 4096, False), "gate|up": (14336, 4096, True), "down": (4096, 14336, False)}


def linear(kind, name, fmt, **changes):
    outputs, inputs, gated = LLAMA[name]
    dtype = BF16_STORAGE if gated else F32
    return CublasLinear(**dict(outputs=outputs, inputs=inputs, fmt=fmt, gated=gated, biased=False, adds=False, source=BF16_STORAGE, dtype=dtype, activations=CODED_ACTIVATIONS.get(fmt, "bf16"), target=Target(kind)) | changes)


@pytest.mark.parametrize("kind", GPUS)
def test_where_it_takes_over(kind):
    """Where arithmetic limits our kernel; formats that tensor cores do not multiply are never cuBLASLt's."""
    for name in LLAMA:
        for fmt in FORMATS:
            found = linear(kind, name, fmt)
            if fmt == BF16 or (fmt == FP8 and kind not in ("sm80", "sm86")) or (fmt == NVFP4 and kind in ("sm100", "sm120")):
                assert 64 <= found.rows <= 512 and found.seconds(2 * found.rows) < found.own_seconds(2 * found.rows)
            else:
                assert found.rows is None


def test_what_it_does_not_take():
    assert linear("sm90", "o", BF16, source=F32).rows is None
    assert linear("sm90", "o", FP8, source=F32).rows
    assert linear("sm90", "o", FP8, activations="bf16").rows is None
    assert linear("sm90", "o", BF16, inputs=100).rows is None
    assert linear("sm90", "o", BF16, target=Target("sm90", cublas=0)).rows is None
    assert linear("sm90", "o", BF16, target=Target("sm90", cublas=33)).rows == 33
    assert linear("sm90", "o", BF16, target=Target("sm90", cublas=33, most_rows=32)).rows is None
    assert linear("sm90", "o", BF16, outputs=64, inputs=64).rows is None  # another kernel to launch is not worth it


def test_a_measured_table_goes_before_what_is_expected(tmp_path, monkeypatch):
    path = tmp_path / "crossovers.json"
    path.write_text(json.dumps({"sm90": {"gated 14336 x 4096 fp8": 48, "4096 x 4096 fp8": None}}))
    monkeypatch.setattr(by_cublas, "MEASURED", path)
    by_cublas._measured.cache_clear()
    assert linear("sm90", "gate|up", FP8).rows == 48 and linear("sm90", "o", FP8).rows is None and linear("sm90", "gate|up", BF16).rows != 48
    monkeypatch.undo()
    by_cublas._measured.cache_clear()
