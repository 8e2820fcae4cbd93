import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import HOST_TARGETS, RUNNABLE_TARGETS, run_kernel
from nodes import BF16 as BF16_STORAGE
from nodes import F32, call_node, compile_together

from slipway.compiler.target import CPU_ISAS
from slipway.plugins.gated_activation.plugin import ACTIVATIONS
from slipway.plugins.linear import pack
from slipway.plugins.linear.plugin import PLUGIN, gated_linear
from slipway.quantization.floats import e2m1_values, e4m3_values
from slipway.quantization.formats import BF16, FORMATS, FP8, FP8_BLOCK, INT8, MXFP4, NVFP4, WeightFormat, quantize, round_trip

VNNI_TARGETS = [target for target in HOST_TARGETS if target.isa.startswith("avx512")]
ROWS = (100, 70, 33, 17, 16, 7, 2, 1)
BY_NAME = {str(fmt): fmt for fmt in FORMATS}


@dataclasses.dataclass(frozen=True)
class Case:
    """One linear with random weights and 100 (or `rows`) rows of input."""

    fmt: WeightFormat
    outputs: int
    inputs: int
    source: torch.dtype = BF16_STORAGE
    dtype: torch.dtype = F32
    activation: str | None = None
    biased: bool = False
    rows: int = max(ROWS)

    def __str__(self):
        traits = [self.activation, "bias" * self.biased]
        return "-".join(map(str, filter(None, (self.fmt, self.outputs, self.inputs, *traits))))

    def random(self, seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    @property
    def x(self):
        return self.random(0, self.rows, self.inputs).to(self.source)

    @property
    def weights(self):
        return [self.random(1 + i, self.outputs, self.inputs) * 0.1 for i in range(2 if self.activation else 1)]

    @property
    def bias(self):
        return self.random(3, self.outputs) if self.biased else None

    @property
    def node(self):
        args = [*self.weights, *([self.bias] if self.biased else []), *([self.activation] if self.activation else [])]
        op = torch.ops.slipway.gated_linear if self.activation else torch.ops.aten.linear
        node = call_node(op.default, self.x.float(), *args, storage=self.dtype)
        node.args[0].meta["storage"] = self.source
        node.meta.update(weight_format=self.fmt)
        return node


CASES = [
    *(Case(fmt, 150 if fmt == FP8_BLOCK else 70, 200, biased=True) for fmt in FORMATS),
    *(Case(BY_NAME[f], 37, 136, F32, BF16_STORAGE, "silu") for f in ("bf16", "int8", "int4g128", "int4g32z", "fp8_block", "nvfp4")),
    Case(BF16, 1, 8, F32),
    Case(INT8, 33, 7, F32, activation="gelu"),
    Case(BY_NAME["int4g64"], 1, 8, F32, biased=True),
]
LONG_CASES = [  # rows and inputs that the many-row kernel cuts into blocks
    Case(BF16, 70, 3000, rows=230),
    Case(INT8, 33, 6100, rows=150),
    Case(BY_NAME["int4g128"], 33, 3000, rows=300),
    Case(BY_NAME["int4g64z"], 33, 8300, rows=90),
    Case(BY_NAME["int4g32"], 33, 1100, rows=700),
    Case(BF16, 33, 40, rows=1100),
    Case(FP8_BLOCK, 200, 5000, rows=300),
    Case(NVFP4, 33, 3000, rows=150),
    Case(NVFP4, 33, 544),
]


def every_number(fmt):
    """Of a format of small floats: each code, of fp4 times each scale of a group; of mxfp4 from 2^-126 on, where bf16 is normal."""
    if fmt in (FP8, FP8_BLOCK):
        return e4m3_values(torch.tensor([c for c in range(256) if c % 128 != 127], dtype=torch.uint8))  # but NaN
    scales = e4m3_values(torch.arange(127, dtype=torch.uint8)) if fmt == NVFP4 else torch.exp2(torch.arange(-125, 15.0))
    return (e2m1_values(torch.arange(16)).repeat(fmt.group_size // 16) * scales[:, None]).flatten()


class EveryNumber(Case):
    """Weights of the first output of each tile, and a row of inputs for each number that picks it out."""

    weights = property(lambda self: [torch.stack([every_number(self.fmt) * (output % 16 == 0) for output in range(self.outputs)])])
    x = property(lambda self: torch.eye(self.rows, dtype=self.source))


EVERY_NUMBER = [EveryNumber(fmt, 17, count, rows=count) for fmt in (FP8, FP8_BLOCK, NVFP4, MXFP4) for count in (len(every_number(fmt)),)]


@functools.cache
def kernels(target):
    """The kernel of each case, and one library of them all."""
    found = {case: PLUGIN.lower(case.node, target) for case in [*CASES, *EVERY_NUMBER, *LONG_CASES]}
    return found, compile_together(found.values(), target)


@functools.cache
def compiled(case, target):
    found, library = kernels(target)
    return found[case], library, [w.pack(*(n.meta["val"] for n in w.nodes)) for w in found[case].weights]


@pytest.fixture(scope="module", autouse=True)
def compiled_in_parallel():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kernels, RUNNABLE_TARGETS[::-1]))  # the longest first


def multiplied(x, fmt, target):
    """The activations that a kernel multiplies: rounded to bfloat16 or, a block of the weights at a time, to steps of a 127th of the largest."""
    if not fmt.integer:
        return x.bfloat16() if target.isa in ("avx512_bf16", "amx") else x
    if target.isa in ("avx2", "amx"):
        return x
    block_k = pack.Panels(fmt, target.isa).block_k
    blocks = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % block_k)).unflatten(1, (-1, block_k))
    largest = blocks.abs().amax(2, keepdim=True)
    codes = (blocks * torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)).round()  # 127 / x is a reciprocal to torch
    return (codes.double() * (largest / 127)).flatten(1)[:, : x.shape[1]]


@functools.cache
def expected(case, target):
    """The meaning in float64, and how far a kernel may be from it: sums of magnitudes times the precision of a factor."""
    x = multiplied(case.x, case.fmt, target)
    sums, magnitudes = [], []
    for weight in case.weights:
        held = round_trip(weight, case.fmt).double()
        sums.append(x.double() @ held.T)
        magnitudes.append(x.double().abs() @ held.abs().T)
    precise = 2e-7 * case.inputs**0.5 + (2**-15 if case.fmt.integer and target.isa == "amx" else 0)
    errors = [m * precise for m in magnitudes]
    if case.activation:
        gate, up = ACTIVATIONS[case.activation](sums[0]), sums[1]
        return gate * up, 1.2 * errors[0] * up.abs() + gate.abs() * errors[1] + errors[0] * errors[1]
    return sums[0] if case.bias is None else sums[0] + case.bias, errors[0]


def run(case, target, rows, threads=2):
    """Outputs of the first `rows` rows. Rows of x and of the output are strided; what lies beside the output must stay."""
    kernel, lib, weights = compiled(case, target)
    x = torch.full((rows, case.inputs + 3), torch.nan, dtype=case.source)[:, 2 : 2 + case.inputs]
    x.copy_(case.x[:rows])
    room = torch.full((rows + 2, case.outputs + 5), 7.0, dtype=case.dtype)
    run_kernel(lib, kernel.symbol, [x], [room[:rows, : case.outputs]], weights, threads=threads,
               shared_scratch=kernel.shared_scratch_at(len(x)), local_scratch=kernel.local_scratch)
    assert (room[rows:] == 7).all() and (room[:, case.outputs :] == 7).all()
    return room[:rows, : case.outputs]


def assert_close(case, target, got):
    want, error = (e[: len(got)] for e in expected(case, target))
    off = (got.double() - want).abs()
    allowed = 1e-6 + error + torch.finfo(case.dtype).eps * want.abs()
    assert (off <= allowed).all(), f"{len(got)} rows: {(off / allowed).max():.2f} of what is allowed"


@pytest.mark.parametrize("target", RUNNABLE_TARGETS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_meaning_for_any_rows_and_threads(case, target):
    whole = run(case, target, ROWS[0])
    assert_close(case, target, whole)
    for rows in ROWS:
        for threads in (1, 2, 3):
            assert torch.equal(run(case, target, rows, threads), whole[:rows])


@pytest.mark.parametrize("target", RUNNABLE_TARGETS[1:], ids=str)
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_many_rows_equal_few(case, target):
    got = run(case, target, case.rows)
    assert_close(case, target, got)
    assert torch.equal(got[:33], run(case, target, 33, 1)) and torch.equal(got, run(case, target, case.rows, 3))


@pytest.mark.parametrize("target", RUNNABLE_TARGETS, ids=str)
@pytest.mark.parametrize("case", EVERY_NUMBER, ids=lambda case: str(case.fmt))
def test_every_number_is_exact(case, target):
    for rows in (case.rows, 80):
        assert torch.equal(run(case, target, rows), case.weights[0].T[:rows])


@pytest.mark.skipif(len(VNNI_TARGETS) < 2, reason="needs AVX-512 with BF16")
@pytest.mark.parametrize("case", [c for c in CASES if c.fmt.integer], ids=str)
def test_integers_give_the_same_bits_with_and_without_bf16(case):
    first, second = (run(case, target, case.rows) for target in VNNI_TARGETS)
    assert torch.equal(first, second)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("target", RUNNABLE_TARGETS, ids=str)
@pytest.mark.parametrize("case", [*CASES[:3], *(c for c in CASES if c.activation is None and c.fmt in (FP8_BLOCK, NVFP4))], ids=str)
def test_what_is_not_finite_reaches_its_row_only(case, target, value):
    kernel, lib, weights = compiled(case, target)
    x, out = case.x[:3].clone(), torch.empty(3, case.outputs)
    x[1, 5] = value
    run_kernel(lib, kernel.symbol, [x], [out], weights, shared_scratch=kernel.shared_scratch_at(len(x)), local_scratch=kernel.local_scratch)
    assert not out[1].isfinite().any() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("target", RUNNABLE_TARGETS[1:], ids=str)
@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=str)
def test_a_large_input_costs_the_others_what_is_said(case, target):
    """Factors of integer weights are off by 2^-16 of the row's largest input at most; without AMX by a 254th of their block's."""
    kernel, lib, weights = compiled(case, target)
    x, out = case.x[:2].clone(), torch.empty(2, case.outputs)
    x[:, 5] = 3000.0
    run_kernel(lib, kernel.symbol, [x], [out], weights, shared_scratch=kernel.shared_scratch, local_scratch=kernel.local_scratch)
    held, meant = round_trip(case.weights[0], case.fmt).double(), multiplied(x, case.fmt, target).double()
    precise = 3000 * 2**-16 * held.abs().sum(1) if target.isa == "amx" else 0
    off = (out.double() - (meant @ held.T + case.bias)).abs()
    assert (off <= precise + 1e-5 * 3000 * held[:, 5].abs() + 1e-6).all()
    block = pack.Panels(case.fmt, target.isa).block_k
    assert ((meant - x)[:, block:].abs() <= x[:, block:].abs().max() / 254 * 1.001).all()  # what lies in other blocks does not suffer


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FORMATS), st.sampled_from(list(CPU_ISAS)), st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_packed_bytes_hold_every_weight(fmt, isa, outputs, inputs, gated):
    weights, layout = [torch.randn(outputs, inputs) for _ in range(2 if gated else 1)], pack.Panels(fmt, isa)
    packed = layout.pack(*weights)
    assert packed.nbytes == layout.packed_bytes(outputs, inputs, gated)
    columns = unpack(torch.from_numpy(packed), pack.num_panels(outputs, gated), inputs, layout)
    if gated:
        columns = columns.view(-1, 2, 16, inputs).transpose(0, 1).reshape(2, -1, inputs)
    for got, weight in zip(columns if gated else [columns], weights):
        assert torch.equal(got[:outputs], round_trip(weight, fmt))
        assert (got[outputs:] == 0).all()


def unpack(packed, panels, inputs, layout):
    """[panels * 32, inputs] float32: the layouts of ARCHITECTURE.md read one weight at a time."""
    fmt, size = layout.fmt, layout.block_k
    n, k = torch.meshgrid(torch.arange(panels * 32), torch.arange(inputs), indexing="ij")
    panel, column, tile, lane = n // 32, n % 32, n % 32 // 16, n % 16
    data, behind = packed.split([blocks := panels * -(-inputs // size) * layout.block_bytes, len(packed) - blocks])
    data, scales = data.view(panels, -1, layout.block_bytes), behind.view(F32)
    if fmt == FP8_BLOCK:
        scales = scales.view(panels, -1, 2)[panel, k // 128, tile]
    elif fmt != BF16:
        scales = scales[:, None]
    if fmt == BF16:
        at = tile * 512 + k % 32 // 2 * 32 + lane * 2 + k % 2
        return data.view(torch.bfloat16)[panel, k // 32, at].float()
    if fmt == INT8:
        at = tile * 16 * size + k % size // 4 * 64 + lane * 4 + k % 4
        return (data[panel, k // size, at].float() - 128) * scales
    if fmt in (FP8, FP8_BLOCK):
        return e4m3_values(data[panel, k // 32, k % 32 // 4 * 128 + tile * 64 + lane * 4 + k % 4]) * scales
    if fmt in (NVFP4, MXFP4):
        block, groups = k // 64, 64 // fmt.group_size
        scale = data[panel, block, k % 64 // fmt.group_size * 32 + column].float()
        scale = torch.exp2((scale / 8).floor() - 10) * (1 + scale % 8 / 8) if fmt == NVFP4 else torch.exp2(scale - 127)
        codes = data[panel, block, groups * 32 + k % 64 // 4 * 64 + lane * 4 + k % 4] >> (4 * tile).byte() & 15
        return e2m1_values(codes) * (scale * scales)
    header = 128 if fmt.zero_point else 64
    block, at = k // fmt.group_size, header + k % fmt.group_size // 4 * 64 + lane * 4 + (k % 4 ^ 1)
    multiplier = data.view(torch.int16)[panel, block, column].float()
    code = (data[panel, block, at] >> (4 * tile).byte() & 15).float()
    zero = data[panel, block, 64 + column].float() if fmt.zero_point else 8
    rung, rung_of_zero = ((c * multiplier / 128 + 0.5).floor() for c in (code, zero))
    return (rung - rung_of_zero) * scales


def test_packing_in_chunks(monkeypatch):
    gate, up = torch.randn(2, 300, 64)
    assert len(list(pack._whole_panels((gate, up)))) == 1
    for layout in (pack.Panels(fmt, isa) for fmt in FORMATS for isa in CPU_ISAS):
        whole = layout.pack(gate, up)
        monkeypatch.setattr(pack, "CHUNK_ELEMENTS", 128 * 64)
        assert len(list(pack._whole_panels((gate, up)))) == 3
        assert (layout.pack(gate, up) == whole).all()
        monkeypatch.undo()


def test_symbol_names_what_differs():
    kernel = PLUGIN.lower(Case(BY_NAME["int4g128"], 4096, 1024, dtype=BF16_STORAGE).node, HOST_TARGETS[0])
    assert kernel.symbol == "linear_n4096_k1024_int4g128_bf16_bf16"
    assert len({PLUGIN.lower(c.node, HOST_TARGETS[0]).symbol for c in CASES}) == len(CASES)


def test_cost_is_exact():
    case = Case(INT8, 4096, 1024, dtype=BF16_STORAGE)
    kernel = PLUGIN.lower(case.node, HOST_TARGETS[0])
    assert kernel.cost.weight_bytes == 4096 * 1024 + 4096 * 4
    assert kernel.cost.token_bytes == 2 * (4096 + 1024) and kernel.cost.token_flops == 2 * 4096 * 1024


def test_declines_with_a_reason():
    node = Case(INT8, 1, 70000, rows=1).node
    assert PLUGIN.supports(node, HOST_TARGETS[0]) == "70000 inputs: integer sums hold 65536"
    node = call_node(torch.ops.aten.linear.default, torch.ones(2, 3, 8), torch.ones(4, 8), storage=F32)
    assert PLUGIN.supports(node, HOST_TARGETS[0]).startswith("x of shape [2, 3, 8]")
    assert PLUGIN.supports(CASES[0].node, HOST_TARGETS[0]) is None


def test_gated_linear_means_what_it_says():
    x, gate, up = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 8)
    want = torch.nn.functional.gelu(x @ gate.T, approximate="tanh") * (x @ up.T)
    torch.testing.assert_close(gated_linear(x, gate, up, "gelu_tanh"), want)
    torch.library.opcheck(gated_linear, (x, gate, up, "silu"))


def test_quantized_weight_is_what_the_pack_holds():
    """A gated pack quantizes gate and up apart, as the meaning does."""
    gate, up = torch.randn(16, 64), torch.randn(16, 64) * 100
    packed = pack.Panels(INT8, "avx2").pack(gate, up)
    scales = torch.from_numpy(packed[-128:]).view(F32)
    assert torch.equal(scales, torch.cat([quantize(w, INT8).scales for w in (gate, up)]))
