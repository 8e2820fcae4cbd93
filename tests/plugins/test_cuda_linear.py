"""The CUDA kernels of linears, in emulation: every format, odd sizes, every variant, several orders of threads."""

import dataclasses
import functools
from unittest import mock

import pytest
import torch
from emulated_gpu import ON_GPU, SEEDS, TARGET, compile_emulated, run_emulated
from nodes import CODED_ACTIVATIONS, F32, call_node
from nodes import BF16 as BF16_STORAGE

from slipway.compiler.target import Target
from slipway.plugins.gated_activation.plugin import ACTIVATIONS
from slipway.plugins.linear import on_gpu
from slipway.plugins.linear.plugin import PLUGIN
from slipway.quantization.formats import BF16, FORMATS, FP8_BLOCK, INT8, round_trip

ROWS = (1, 7, 8, 9, 16, 17, 64, 70, 150)  # around the limits of each kernel
pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation


@dataclasses.dataclass(frozen=True)
class Case:
    fmt: object
    outputs: int
    inputs: int
    source: torch.dtype = BF16_STORAGE
    dtype: torch.dtype = F32
    activation: str | None = None
    biased: bool = False
    adds: bool = False
    target: object = TARGET
    groups: bool = False  # warpgroups multiply many rows, however few blocks that makes

    def __str__(self):
        return "-".join(map(str, filter(None, (self.fmt, self.outputs, self.inputs, self.activation, "bias" * self.biased, "residual" * self.adds, "" if self.target == TARGET else self.target, "groups" * self.groups))))

    def random(self, seed, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    @functools.cached_property
    def x(self):
        return self.random(0, max(ROWS), self.inputs).to(self.source)

    @functools.cached_property
    def weights(self):
        return [self.random(1 + i, self.outputs, self.inputs) * 0.1 for i in range(2 if self.activation else 1)]

    @functools.cached_property
    def bias(self):
        return self.random(3, self.outputs) if self.biased else None

    @functools.cached_property
    def residual(self):
        return self.random(4, max(ROWS), self.outputs) if self.adds else None

    def inputs_of(self, rows):
        return [self.x[:rows], *([self.residual[:rows]] if self.adds else [])]

    @functools.cached_property
    def kernel(self):
        ops, weight = torch.ops.slipway, self.weights[0]
        if self.activation:
            call = ops.gated_linear.default, *self.weights, self.activation
        elif self.adds:
            call = ops.linear_residual.default, weight, self.bias, self.residual
        else:
            call = torch.ops.aten.linear.default, weight, *([self.bias] if self.biased else [])
        node = call_node(call[0], self.x.float(), *call[1:], storage=self.dtype)
        node.args[0].meta["storage"] = self.source
        node.meta.update(weight_format=self.fmt, activations=CODED_ACTIVATIONS.get(self.fmt, "bf16"))
        assert PLUGIN.supports(node, self.target) is None
        with mock.patch.object(on_gpu, "GROUP_FILL", 0 if self.groups else on_gpu.GROUP_FILL):
            return PLUGIN.lower(node, self.target)

    @functools.cached_property
    def packed(self):
        packed = [w.pack(*([self.bias] if w.nodes[0].meta["val"].ndim == 1 else self.weights)) for w in self.kernel.weights]
        assert [len(array) for array in packed] == [w.bytes for w in self.kernel.weights]
        return packed

    @functools.cached_property
    def meaning(self):
        x, (first, *second) = self.x.bfloat16().double(), [round_trip(w, self.fmt, rungs=False).double() for w in self.weights]
        y = x @ first.T + sum(part.double() for part in (self.bias, self.residual) if part is not None)
        return ACTIVATIONS[self.activation](y) * (x @ second[0].T) if second else y


BY_WARPS = Target("sm80")  # whose many rows warps multiply by themselves
CASES = [
    *(Case(fmt, 72, 456) for fmt in FORMATS),  # an odd number of tiles, a chunk in part
    *(Case(fmt, 40, 640, activation="silu", dtype=BF16_STORAGE) for fmt in FORMATS if not fmt.zero_point),
    Case(BF16, 16, 64),
    Case(BF16, 33, 100, biased=True),  # rows that 16 bytes do not divide
    Case(BF16, 48, 1024, source=F32, biased=True),
    Case(FORMATS[1], 264, 2048, biased=True),
    Case(BF16, 24, 320, activation="gelu"),
    Case(INT8, 72, 456, adds=True),
    Case(BF16, 33, 320, dtype=BF16_STORAGE, biased=True, adds=True),
    *(Case(INT8, outputs, 456, biased=True, adds=True, groups=True) for outputs in (33, 274) if TARGET.kind == "sm90"),
    *(Case(fmt, 72, 456, target=BY_WARPS) for fmt in FORMATS if not ON_GPU),
    *(Case(fmt, 72, 456, groups=True) for fmt in FORMATS if fmt != BF16 and TARGET.kind == "sm90"),
    *(Case(fmt, 40, 640, activation="silu", dtype=BF16_STORAGE, groups=True) for fmt in FORMATS if fmt != BF16 and not fmt.zero_point and TARGET.kind == "sm90"),
    *(Case(INT8, 264, 100, source=F32, biased=True, groups=True) for _ in range(TARGET.kind == "sm90")),  # more than a block has, inputs that 8 does not divide
    *(Case(INT8, outputs, 128, dtype=BF16_STORAGE, biased=True, groups=True) for outputs in (33, 274) if TARGET.kind == "sm90"),  # rows that are not all of pairs, and that are
    Case(FP8_BLOCK, 200, 456, activation="silu"),  # of two blocks of outputs, the second in part
]


@functools.cache
def library(target, groups):
    """Of all cases of a kind."""
    return compile_emulated([case.kernel for case in CASES if (case.target, case.groups) == (target, groups)])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_meaning(case, rows):
    for seed in SEEDS[1:] if rows < 17 else SEEDS[-1:]:
        out = torch.full((rows, case.outputs), torch.nan, dtype=case.dtype)
        run_emulated(library(case.target, case.groups), case.kernel, case.inputs_of(rows), [out], case.packed, seed=seed)
        torch.testing.assert_close(out.double(), case.meaning[:rows], rtol=2 * torch.finfo(case.dtype).eps, atol=1e-5 * case.inputs**0.5)


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.group_size], ids=str)
@pytest.mark.parametrize("groups", [False, True])
def test_groups_of_zeros_beside_others(fmt, groups):
    """Their multipliers may be zeros, which nothing is counted in."""
    case = Case(fmt, 72, 456, groups=groups and TARGET.kind == "sm90")
    for begin, end in ((0, 128), (200, 330)):
        case.weights[0][:, begin:end] = 0
    case.weights[0][5], case.weights[0][:, 400:] = 0, case.weights[0][:, 400:] * 1e-4
    for rows in (3, 40, 70):
        out = torch.full((rows, case.outputs), torch.nan)
        run_emulated(library(case.target, case.groups), case.kernel, case.inputs_of(rows), [out], case.packed, seed=1)
        torch.testing.assert_close(out.double(), case.meaning[:rows], rtol=1e-6, atol=1e-4)
