"""The table of weight formats, and how a linear's weight W[N, K] becomes codes and scales and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slipway.compiler.errors import UserError

CHUNK_ELEMENTS = 1 << 18  # of W at a time: the working set of the search for scales stays in a core's L2
CLIP_RATIOS = (1.0, 0.96, 0.92, 0.87, 0.82, 0.76)


@dataclass(frozen=True)
class WeightFormat:
    """How one weight is stored.

    group_size: inputs that share a scale, or None: one scale an output (or none at all: bf16).
    zero_point: codes count from a zero of their group, not from the middle of their range.
    """

    name: str
    bits: int
    group_size: int | None = None
    zero_point: bool = False

    def __str__(self) -> str:
        return self.name + (f"g{self.group_size}" if self.group_size else "") + ("z" if self.zero_point else "")

    @property
    def bits_per_weight(self) -> float:
        """With group scales (f16) and zero points (u8); a scale an output is not counted."""
        return self.bits + (16 + 8 * self.zero_point) / self.group_size if self.group_size else self.bits

    def groups(self, columns: int) -> int:
        """Scales in a row of K = `columns` weights; the last group may be short."""
        return -(-columns // self.group_size) if self.group_size else 1


@dataclass(frozen=True)
class Quantized:
    """W[n, k] = (codes[n, k] - zero) * scales[n, group of k].

    codes u8 [N, K]. scales [N, groups], f32 for int8 and f16 for int4. zeros u8 [N, groups], or None: zero = 2^(bits - 1).
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


BF16 = WeightFormat("bf16", 16)
INT8 = WeightFormat("int8", 8)
INT4_GROUPS = (32, 64, 128)
FORMATS = (BF16, INT8, *(WeightFormat("int4", 4, g, z) for g in INT4_GROUPS for z in (False, True)))


def parse(name: str, group_size: int | None = None, zero_point: bool = False) -> WeightFormat:
    """The format a recipe names. Raises UserError, `where` being the recipe's key."""
    names = list(dict.fromkeys(f.name for f in FORMATS))
    if name not in names:
        raise UserError("weights", f"unknown format {name!r}", f"one of {', '.join(names)}")
    if name == "int4" and group_size not in INT4_GROUPS:
        raise UserError("group_size", f"int4 weights with groups of {group_size}", "32, 64 or 128", "group_size: 128")
    wanted = WeightFormat(name, {f.name: f.bits for f in FORMATS}[name], group_size, zero_point)
    if wanted not in FORMATS:
        raise UserError("group_size" if group_size else "zero_point", f"{name} weights have none", hint="leave it out")
    return wanted


def quantize(weight: Tensor, fmt: WeightFormat) -> Quantized:
    """W[N, K], any float type, to the nearest codes; int4 scales are those of least squared error among a few.

    Raises UserError if a weight is NaN, infinite or too large for its scale's type.
    """
    n, k = weight.shape
    codes = torch.empty(n, k, dtype=torch.uint8)
    scales = torch.empty(n, fmt.groups(k), dtype=torch.float32 if fmt == INT8 else torch.float16)
    zeros = torch.empty(n, fmt.groups(k), dtype=torch.uint8) if fmt.zero_point else None
    for rows, values in _row_chunks(weight):
        groups = _grouped(values, fmt)
        scale, zero, code = _ENCODERS[fmt.name, fmt.zero_point](groups)
        if not scale.isfinite().all():
            bad = rows.start + int((~scale.isfinite()).any(-1).nonzero()[0])
            raise UserError(f"weight of shape {n} x {k}", f"row {bad} holds NaN, infinity or a value too large for {fmt}")
        codes[rows] = code.flatten(1)[:, :k]
        scales[rows] = scale
        if zeros is not None:
            zeros[rows] = zero
    return Quantized(fmt, codes, scales, zeros)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 W[N, K]."""
    fmt, (n, k) = quantized.format, quantized.codes.shape
    weight = torch.empty(n, k)
    for rows, codes in _row_chunks(quantized.codes):
        zero = 2.0 ** (fmt.bits - 1) if quantized.zeros is None else quantized.zeros[rows, :, None].float()
        weight[rows] = ((_grouped(codes, fmt) - zero) * quantized.scales[rows, :, None].float()).flatten(1)[:, :k]
    return weight


def round_trip(weight: Tensor, fmt: WeightFormat) -> Tensor:
    """float32 W[N, K] as the format holds it: what a linear of that format multiplies with."""
    return weight.bfloat16().float() if fmt == BF16 else dequantize(quantize(weight, fmt))


def _row_chunks(matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    n, k = matrix.shape
    step = max(1, CHUNK_ELEMENTS // max(1, k))
    for begin in range(0, n, step):
        rows = slice(begin, min(n, begin + step))
        yield rows, matrix[rows].float()


def _grouped(values: Tensor, fmt: WeightFormat) -> Tensor:
    """[rows, K] -> [rows, groups, group size], the last group filled up with zeros."""
    rows, k = values.shape
    groups = fmt.groups(k)
    padded = torch.nn.functional.pad(values, (0, groups * (fmt.group_size or k) - k))
    return padded.view(rows, groups, -1)


Encoded = tuple[Tensor, Tensor | None, Tensor]  # scales [rows, groups], zeros or None, codes [rows, groups, size]


def _encode_int8(groups: Tensor) -> Encoded:
    scale = groups.abs().amax(-1) / 127
    return scale, None, (groups * _inverse(scale)).round_().add_(128)


def _encode_int4(groups: Tensor) -> Encoded:
    """Codes are -8 .. 7: the scale's sign is such that the group's largest weight takes the longer side."""
    low, high = groups.aminmax(dim=-1)
    largest = torch.where(-low > high, low, high)
    return _least_error(groups, largest / -8, lambda scale: torch.tensor(8.0))


def _encode_int4_from_zero(groups: Tensor) -> Encoded:
    low, high = groups.aminmax(dim=-1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    return _least_error(groups, (high - low) / 15, lambda scale: (-low * _inverse(scale)[..., 0]).round_().clamp_(0, 15))


def _least_error(groups: Tensor, scale: Tensor, zero_of: Callable[[Tensor], Tensor]) -> Encoded:
    """The best of `scale` times each clip ratio; zero_of(scale) is the zero point that goes with a scale."""
    best_error, best_scale = torch.full_like(scale, torch.inf), scale.half()
    for ratio in CLIP_RATIOS:
        candidate = (scale * ratio).half()
        zero = zero_of(candidate).unsqueeze(-1)
        codes = (groups * _inverse(candidate)).round_().add_(zero).clamp_(0, 15)
        off = codes.sub_(zero).mul_(candidate.float().unsqueeze(-1)).sub_(groups)
        error = torch.linalg.vecdot(off, off)
        better = error < best_error
        best_error, best_scale = torch.where(better, error, best_error), torch.where(better, candidate, best_scale)
    zero = zero_of(best_scale)
    codes = (groups * _inverse(best_scale)).round_().add_(zero.unsqueeze(-1)).clamp_(0, 15)
    return best_scale, zero, codes


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale with a last dimension to broadcast over; 0 for the scale of an all-zero group."""
    scale = scale.float()
    return torch.where(scale == 0, 0.0, 1 / scale).unsqueeze(-1)


_ENCODERS = {
    ("int8", False): _encode_int8,
    ("int4", False): _encode_int4,
    ("int4", True): _encode_int4_from_zero,
}
