"""Linears of many rows by cuBLASLt: which, from how many rows on, and the launches around it. Mirrors plugins/linear/cuda/around_matmul.cuh.

bf16 weights are multiplied as they lie. So are fp8 weights, where the recipe lets activations be made e4m3 too, a scale a row: tensor cores
multiply those at up to twice the rate of bf16. Norms and gated linears that only such linears read make the codes themselves. nvfp4 weights are
packed a second time for it (pack_scaled_groups.py), where activations may be nvfp4 too: up to four times the rate. Where more is to be done than
the multiplication, a row's record in the scratch holds its codes and scale, if they are made here, and what it is multiplied to.
"""

from __future__ import annotations

import functools
import json
import pathlib
from dataclasses import dataclass

import torch
from torch.fx import Node

from slipway.compiler.cards import CARDS, Card, cards_for
from slipway.compiler.target import ACTIVATION_FACTORS, Target
from slipway.plugins.linear import pack_cuda, pack_scaled_groups
from slipway.plugins.plugin import ONE, Extent, Launch, Matmul, PackedWeight, ScratchRows
from slipway.quantization.formats import BF16, FP8, NVFP4, WeightFormat

AROUND_THREADS, FINISH_OUTPUTS = 256, 8  # around_matmul.cuh; outputs of a thread
CODING_SHARED_BYTES = 4 * AROUND_THREADS // 32
RECORD_ALIGNMENT = 256  # bytes
LEAST_ROWS, MOST_ROWS = 32, 4096  # between which the cross-over is looked for
MEASURED = pathlib.Path(__file__).with_name("crossovers.json")  # as `make gpu` finds them: {target: {"N x K format": rows, null: never}}

# Shares of a card's rate in bf16, guesses until they are measured: of mma.sync in our kernels where their blocks fill it, and of cuBLASLt.
OWN_SHARES = {"sm80": 0.6, "sm86": 0.6, "sm89": 0.6, "sm90": 0.45, "sm100": 0.25, "sm120": 0.6}
CUBLAS_SHARE = 0.75
MARGIN_S = 5e-6
CUBLAS_BLOCK, CUBLAS_SPLITS = (128, 128), 4  # rows and outputs; blocks that share them where there are few
OWN_BLOCK = 64, 128  # rows and outputs; as in many_rows.cuh


@dataclass(frozen=True)
class Factors:
    """Numbers that cuBLASLt multiplies, with weights of a format. rate: beside bf16's. coder: of around_matmul.cuh or scaled_groups.cuh, what makes
    codes of a row of activations. in_groups: neighbours have scales, and weights are packed for that.
    """

    name: str
    bits: int
    rate: int
    weights: WeightFormat
    coder: str | None = None
    in_groups: bool = False


FACTORS = (
    Factors("bf16", 16, 1, BF16),
    Factors("e4m3", 8, 2, FP8, "quantize_inputs"),
    Factors("e2m1", 4, 4, NVFP4, "quantize_inputs_in_groups", in_groups=True),
)


@dataclass(frozen=True)
class Finish:
    """A function that finishes what cuBLASLt multiplied, in steps of min_rows to max_rows rows. body: of around_matmul.cuh. blocks: of a row."""

    name: str
    body: str
    blocks: int
    shared_bytes: int
    min_rows: int
    max_rows: int | None


@dataclass(frozen=True)
class CublasLinear:
    """A linear that cuBLASLt takes from `rows` rows on. source, dtype: of its activations and outputs."""

    outputs: int
    inputs: int
    fmt: WeightFormat
    gated: bool
    biased: bool
    adds: bool  # a residual
    source: torch.dtype
    dtype: torch.dtype
    activations: str  # of the recipe
    target: Target
    coded: bool = False  # its activations come as codes
    codes_from: int | None = None  # from so many rows on its outputs are to be codes

    @property
    def factors(self) -> Factors | None:
        """What it multiplies; None: it does not take this linear."""
        if self.target.cublas == 0 or self.inputs % 8 or self.outputs % 8 or (self.fmt == BF16 and self.source != torch.bfloat16):
            return None
        wanted = {"bf16", ACTIVATION_FACTORS[self.activations]}
        return next((f for f in FACTORS if f.weights == self.fmt and f.name in wanted.intersection(self.target.gpu.factors)), None)

    @property
    def rows(self) -> int | None:
        """From so many on it is cuBLASLt's; None: in no step."""
        if self.factors is None:
            return None
        measured = _measured().get(self.target.kind, {})
        found = self.target.cublas or (measured[self.name] if self.name in measured else self.expected_rows)
        return None if found and self.target.most_rows and found > self.target.most_rows else found

    @property
    def name(self) -> str:
        """In the measured table."""
        return f"{'gated ' * self.gated}{self.outputs} x {self.inputs} {self.fmt}"

    @property
    def expected_rows(self) -> int | None:
        """The first power of two for which cuBLASLt should take less time than our kernel, by more than a guess may be wrong."""
        rows = LEAST_ROWS
        while rows <= MOST_ROWS:
            if self.seconds(rows) + MARGIN_S < self.own_seconds(rows):
                return rows
            rows *= 2
        return None

    def own_seconds(self, rows: int) -> float:
        """What our kernel should take."""
        fill = min(1.0, self._blocks(rows, OWN_BLOCK) / self.target.gpu.multiprocessors)
        fill = fill if rows > OWN_BLOCK[0] else 1  # up to one block of rows, blocks share outputs
        return self._card.seconds(self._weight_bytes, self._flops(rows) / (OWN_SHARES[self.target.kind] * fill), 1)

    def seconds(self, rows: int) -> float:
        """What cuBLASLt should take, and the launches around it."""
        card, rate = self._card, CUBLAS_SHARE * self.factors.rate
        around = rows * (self.record_bytes * 2 + self.outputs * self.dtype.itemsize) / card.read_bytes_per_s if self.finishes else 0
        rate *= min(1.0, CUBLAS_SPLITS * self._blocks(rows, CUBLAS_BLOCK) / self.target.gpu.multiprocessors)
        return card.seconds(self._weight_bytes, self._flops(rows) / rate, 1 + self.scaled + self.finishes) + around

    @property
    def in_e4m3(self) -> bool:
        return self.factors is not None and self.factors.name == "e4m3"

    @property
    def in_groups(self) -> bool:
        return self.factors is not None and self.factors.in_groups

    @property
    def scaled(self) -> bool:
        """Whether rows of activations are codes that have a scale."""
        return self.factors is not None and self.factors.coder is not None

    @property
    def quantizes(self) -> bool:
        return self.scaled and not self.coded

    @property
    def finishes(self) -> bool:
        """Whether anything is left to do with a row of sums. cuBLASLt adds a residual itself, to results of its type."""
        return self.scaled or self.gated or self.biased or (self.adds and self.dtype != torch.float32)

    @property
    def record_bytes(self) -> int:
        """Of a row: codes, results, and their scale."""
        return _up(self.results_at + self._packed_outputs * self.results_itemsize + 4, RECORD_ALIGNMENT) if self.finishes else 0

    @property
    def results_at(self) -> int:
        return _up(self._packed_inputs * self.factors.bits // 8, RECORD_ALIGNMENT) if self.quantizes else 0

    @property
    def scratch_bytes_per_row(self) -> int:
        return self.record_bytes + (pack_scaled_groups.scales_of_row(self.inputs) if self.in_groups else 0)

    @property
    def scratch_bytes(self) -> int:
        """Beside those of rows: scales lie in whole pieces."""
        return pack_scaled_groups.scale_bytes(1, self.inputs) if self.in_groups else 0

    def packed_weights(self, weights: tuple[Node, ...]) -> tuple[PackedWeight, ...]:
        """That are packed for it alone."""
        if not self.in_groups:
            return ()
        size = pack_scaled_groups.packed_bytes(self.outputs, self.inputs, self.gated)
        return (PackedWeight(weights, pack_scaled_groups.pack, f"{'gated_' * self.gated}linear_scaled_groups", size),)

    @property
    def results_itemsize(self) -> int:
        """Sums of what becomes bf16 are bf16."""
        return self.dtype.itemsize if self.finishes and not self.gated else torch.bfloat16.itemsize

    @property
    def constants(self) -> dict[str, object]:
        """What launch.cuda.j2 asks for."""
        return {
            "record": f"{self.record_bytes}, {self.results_at}",
            "Result": "bf16" if self.results_itemsize == 2 else "float",
            "scaled": self.scaled,
            "coded": self.coded,
            "coder": self.factors.coder if self.quantizes else None,
            "in_groups": self.in_groups,
            "finishes": self.finishes,
            "finish": [(each.name, each.body) for each in self._finish],
        }

    def launches(self, symbol: str) -> list[Launch]:
        rows = self.rows
        codes = ScratchRows(0, self.record_bytes) if self.quantizes else None
        results = ScratchRows(self.results_at, self.record_bytes) if self.finishes else None
        matmul = Matmul(
            outputs=self._packed_outputs if self.finishes else self.outputs,
            inputs=self._packed_inputs if self.scaled else self.inputs,
            weight_columns=self._packed_inputs,
            factors=self.factors.name,
            results=("bf16" if self.results_itemsize == 2 else "f32") if self.finishes else {torch.bfloat16: "bf16", torch.float32: "f32"}[self.dtype],
            source=codes,
            destination=results,
            weight=1 + self.biased if self.in_groups else 0,
            adds=self.adds and not self.finishes,
        )
        each_row = Extent("rows")
        before = [Launch(f"{symbol}_quantize", AROUND_THREADS, (each_row, ONE, ONE), CODING_SHARED_BYTES, min_rows=rows)]
        after = [
            Launch(f"{symbol}_{each.name}", AROUND_THREADS, (each_row, Extent(fixed=each.blocks), ONE), each.shared_bytes, each.min_rows, each.max_rows)
            for each in self._finish
        ]
        return [*before * self.quantizes, Launch("cublasLtMatmul", 0, (ONE, ONE, ONE), min_rows=rows, matmul=matmul), *after]

    @property
    def _finish(self) -> list[Finish]:
        if not self.finishes:
            return []
        blocks, found = -(-self.outputs // (AROUND_THREADS * FINISH_OUTPUTS)), []
        if self.codes_from != self.rows:
            found.append(Finish("finish", "finish_outputs", blocks, 0, self.rows, self.codes_from and self.codes_from - 1))
        if self.codes_from:
            found.append(Finish("codes", "finish_as_codes", 1, CODING_SHARED_BYTES, self.codes_from, None))
        return found

    def _blocks(self, rows: int, block: tuple[int, int]) -> int:
        return -(-rows // block[0]) * -(-self._packed_outputs // block[1])

    @property
    def _card(self) -> Card:
        """That the target is first built for; sm86 has none in the table and is taken as an A100."""
        return next(iter(cards_for(self.target.kind)), CARDS["a100"])

    @property
    def _packed_outputs(self) -> int:
        return pack_cuda.num_tiles(self.outputs, self.gated) * pack_cuda.TILE

    @property
    def _packed_inputs(self) -> int:
        return pack_cuda.num_chunks(self.inputs) * pack_cuda.CHUNK

    @property
    def _weight_bytes(self) -> int:
        return pack_cuda.Tiles(self.fmt).packed_bytes(self.outputs, self.inputs, self.gated)

    def _flops(self, rows: int) -> int:
        return 2 * rows * self._packed_outputs * self.inputs


@functools.cache
def _measured() -> dict[str, dict[str, int]]:
    return json.loads(MEASURED.read_text())


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
