"""The tables of weight and KV cache formats, and how a linear's weight W[N, K] becomes codes and scales and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slipway.compiler.errors import UserError
from slipway.quantization import floats
from slipway.quantization.stored import MIDDLE, StoredInt4

CHUNK_ELEMENTS = 1 << 18  # of W at a time: the working set of the search for scales stays in a core's L2
CLIP_RATIOS = (1.0, 0.96, 0.92, 0.87, 0.82, 0.76)
RUNG = 128  # multipliers count int8 steps a code in parts of this
MULTIPLIER_BITS = 15  # and a sign


@dataclass(frozen=True)
class WeightFormat:
    """How one weight is stored.

    group_size: inputs that share a multiplier of their output's scale, or None: only the output's scale (or none at all: bf16).
    zero_point: codes count from a zero of their group, not from the middle of their range. multiplier_bits: of each group.
    """

    name: str
    bits: int
    group_size: int | None = None
    zero_point: bool = False
    multiplier_bits: int = 16

    def __str__(self) -> str:
        return self.name + (f"g{self.group_size}" if self.name == "int4" else "") + ("z" if self.zero_point else "")

    @property
    def integer(self) -> bool:
        """Whether codes are steps of a scale: CPUs multiply them as integers."""
        return self.name in ("int8", "int4")

    @property
    def bits_per_weight(self) -> float:
        """With multipliers and zero points (8 bits); a scale an output is not counted."""
        return self.bits + (self.multiplier_bits + 8 * self.zero_point) / self.group_size if self.group_size else self.bits

    def holds(self, stored: WeightFormat) -> bool:
        """Whether int4 weights of the other format keep their codes in this one."""
        return self.name == stored.name == "int4" and stored.group_size % self.group_size == 0 and (self.zero_point or not stored.zero_point)

    def groups(self, columns: int) -> int:
        """Groups in a row of K = `columns` weights; the last may be short."""
        return -(-columns // self.group_size) if self.group_size else 1


@dataclass(frozen=True)
class Quantized:
    """int8: W[n, k] = (codes[n, k] - 128) * scales[n]. int4, with m and zero those of n and the group of k:

        W[n, k] = (round(codes[n, k] * m / 128) - round(zero * m / 128)) * scales[n]

    halves rounded up: a group's codes are the rungs of a ladder of int8 values, so that an int4 linear is computed as an int8 one
    and is as exact. Rungs are at most 127 from 0 and at most one from where a real m would have them. A GPU multiplies floats, and
    rounds to no rung: W[n, k] = (codes[n, k] - zero) * m / 128 * scales[n], where m has 15 bits and scales[n] is a power of two, so that steps
    of a float16 are held exactly from 1/16 of the output's largest on.

    fp8: W[n, k] = e4m3(codes[n, k]) * scales[n]. fp8_block: e4m3(codes[n, k]) * m, of 128 outputs and 128 inputs; scales are 1.
    nvfp4, mxfp4: W[n, k] = e2m1(codes[n, k]) * m * scales[n], m the group's e4m3 or e8m0.

    codes u8 [N, K]; scales f32 [N]; multipliers i16 [N, groups], f32 of fp8_block, bits u8 of nvfp4 and mxfp4, None for formats without groups; zeros
    u8 [N, groups], None: zero = 8.
    """

    format: WeightFormat
    codes: Tensor
    scales: Tensor
    multipliers: Tensor | None
    zeros: Tensor | None


BF16 = WeightFormat("bf16", 16)
INT8 = WeightFormat("int8", 8)
INT4_GROUPS = (32, 64, 128)
FP8, FP8_BLOCK = WeightFormat("fp8", 8), WeightFormat("fp8_block", 8, 128, multiplier_bits=0)
NVFP4, MXFP4 = WeightFormat("nvfp4", 4, 16, multiplier_bits=8), WeightFormat("mxfp4", 4, 32, multiplier_bits=8)
BLOCK_ROWS = 128  # outputs that share the multiplier of a group of fp8_block
FORMATS = (BF16, INT8, *(WeightFormat("int4", 4, g, z) for g in INT4_GROUPS for z in (False, True)), FP8, FP8_BLOCK, NVFP4, MXFP4)


@dataclass(frozen=True)
class KvFormat:
    """How keys and values are stored. scale_bytes: beside the numbers of each token and KV head, for keys and for values."""

    name: str
    bits: int
    scale_bytes: int = 0

    def token_bytes(self, head_dim: int) -> int:
        """Of the key, or the value, of one token in one KV head."""
        return head_dim * self.bits // 8 + self.scale_bytes

    def round_trip(self, x: Tensor) -> Tensor:
        """float32 x[..., head_dim] as the cache holds it; int8: to the nearest of 127 steps on either side of 0, the last the largest; fp8: to
        the nearest e4m3, the largest 448.
        """
        if self.bits == 16:
            return x.bfloat16().float()
        largest, most = x.abs().amax(-1, keepdim=True), 127.0 if self.name == "int8" else floats.E4M3_MAX
        scaled = x * (x.new_tensor(most) / largest)
        codes = scaled.round() if self.name == "int8" else floats.e4m3_values(floats.e4m3_bits(scaled))
        return torch.where(largest > 0, codes * (largest / most), 0.0)


KV_BF16, KV_INT8, KV_FP8 = KvFormat("bf16", 16), KvFormat("int8", 8, 4), KvFormat("fp8", 8, 4)
KV_FORMATS = {f.name: f for f in (KV_BF16, KV_INT8, KV_FP8)}


def parse(name: str, group_size: int | None = None, zero_point: bool = False) -> WeightFormat:
    """The format a recipe names. Raises UserError, `where` being the recipe's key."""
    names = list(dict.fromkeys(f.name for f in FORMATS))
    if name not in names:
        raise UserError("weights", f"unknown format {name!r}", f"one of {', '.join(names)}")
    if name == "int4" and group_size not in INT4_GROUPS:
        raise UserError("group_size", f"int4 weights with groups of {group_size}", "32, 64 or 128", "group_size: 128")
    wanted = next((f for f in FORMATS if f.name == name and (name != "int4" or (f.group_size, f.zero_point) == (group_size, zero_point))))
    if name != "int4" and (group_size or zero_point):
        raise UserError("group_size" if group_size else "zero_point", f"{name} weights have none", hint="leave it out")
    return wanted


def quantize(weight: Tensor, fmt: WeightFormat, rungs: bool = True) -> Quantized:
    """W[N, K], any float type, to the nearest codes; int4 groups have the scales of least squared error among a few. Codes of a StoredInt4 stay as
    they are in int4. rungs: int4 as a CPU has it.

    Raises UserError if a weight is NaN, infinite or too large, and for a StoredInt4 whose codes an int4 format does not hold.
    """
    if isinstance(weight, StoredInt4):
        if fmt.name == "int4":
            return _as_stored(weight, fmt, rungs)
        weight = weight.decoded()
    n, k = weight.shape
    grouped = fmt.group_size is not None
    codes, scales = torch.empty(n, k, dtype=torch.uint8), torch.empty(n)
    multipliers = torch.empty(n, fmt.groups(k), dtype=_multiplier_type(fmt)) if grouped else None
    zeros = torch.empty(n, fmt.groups(k), dtype=torch.uint8) if fmt.zero_point else None
    for rows, values in _row_chunks(weight, BLOCK_ROWS if fmt == FP8_BLOCK else 1):
        groups = _grouped(values, fmt)
        scale, multiplier, zero, code = _encode(groups, fmt, rungs)
        if not scale.isfinite().all():
            bad = rows.start + int((~scale.isfinite()).nonzero()[0])
            raise UserError(f"weight of shape {n} x {k}", f"row {bad} holds NaN, infinity or a value too large for {fmt}")
        codes[rows] = code.flatten(1)[:, :k]
        scales[rows] = scale
        if grouped:
            multipliers[rows] = multiplier
        if zeros is not None:
            zeros[rows] = zero
    return Quantized(fmt, codes, scales, multipliers, zeros)


def dequantize(quantized: Quantized, rungs: bool = True) -> Tensor:
    """float32 W[N, K]. rungs: int4 as a CPU has it."""
    fmt, (n, k) = quantized.format, quantized.codes.shape
    if fmt == INT8:
        return (quantized.codes.float() - 128) * quantized.scales[:, None]
    if fmt == FP8:
        return floats.e4m3_values(quantized.codes) * quantized.scales[:, None]
    if fmt == FP8_BLOCK:
        return floats.e4m3_values(quantized.codes) * quantized.multipliers.repeat_interleave(fmt.group_size, 1)[:, :k]
    if fmt in (NVFP4, MXFP4):
        multiplier = (floats.e4m3_values if fmt == NVFP4 else floats.decode_mxfp4_scale)(quantized.multipliers)
        steps = (multiplier * quantized.scales[:, None]).repeat_interleave(fmt.group_size, 1)[:, :k]
        return floats.e2m1_values(quantized.codes) * steps
    weight = torch.empty(n, k)
    for rows, codes in _row_chunks(quantized.codes):
        multiplier = quantized.multipliers[rows, :, None]
        zero = MIDDLE if quantized.zeros is None else quantized.zeros[rows, :, None]
        grouped = _grouped(codes, fmt)
        steps = _rung(grouped, multiplier) - _rung(zero, multiplier) if rungs else (grouped - zero) * (multiplier / RUNG)
        weight[rows] = (steps * quantized.scales[rows, None, None]).flatten(1)[:, :k]
    return weight


def round_trip(weight: Tensor, fmt: WeightFormat, rungs: bool = True) -> Tensor:
    """float32 W[N, K] as the format holds it: what a linear of that format multiplies with."""
    return weight.bfloat16().float() if fmt == BF16 else dequantize(quantize(weight, fmt, rungs), rungs)


def _as_stored(weight: StoredInt4, fmt: WeightFormat, rungs: bool) -> Quantized:
    """A group becomes several where those of `fmt` are smaller."""
    n, k = weight.shape
    stored = WeightFormat("int4", 4, weight.group_size, bool((weight.zeros != MIDDLE).any()))
    if not fmt.holds(stored):
        raise UserError(f"weight of shape {n} x {k}", f"stored as {stored}", f"a format that holds its codes, not {fmt}")
    if not weight.steps.isfinite().all():
        bad = int((~weight.steps.isfinite()).any(1).nonzero()[0])
        raise UserError(f"weight of shape {n} x {k}", f"row {bad} has a scale that is NaN or infinite")
    steps, zeros = (g.repeat_interleave(stored.group_size // fmt.group_size, 1)[:, : fmt.groups(k)] for g in (weight.steps, weight.zeros))
    scales, multipliers = _multipliers(steps, zeros, rungs)
    return Quantized(fmt, weight.codes, scales, multipliers.to(torch.int16), zeros.contiguous() if fmt.zero_point else None)


def _row_chunks(matrix: Tensor, together: int = 1) -> Iterator[tuple[slice, Tensor]]:
    n, k = matrix.shape
    step = max(1, CHUNK_ELEMENTS // max(1, k) // together) * together
    for begin in range(0, n, step):
        rows = slice(begin, min(n, begin + step))
        yield rows, matrix[rows].float()


def _multiplier_type(fmt: WeightFormat) -> torch.dtype:
    return {"int4": torch.int16, "fp8_block": torch.float32}.get(fmt.name, torch.uint8)


def _grouped(values: Tensor, fmt: WeightFormat) -> Tensor:
    """[rows, K] -> [rows, groups, group size], the last group filled up with zeros."""
    rows, k = values.shape
    groups = fmt.groups(k)
    padded = torch.nn.functional.pad(values, (0, groups * (fmt.group_size or k) - k))
    return padded.view(rows, groups, -1)


def _rung(code: Tensor | int, multiplier: Tensor) -> Tensor:
    return (code * multiplier.float() / RUNG + 0.5).floor()


# scales [rows], multipliers [rows, groups] or None, zeros [rows, groups] or None, codes [rows, groups, size]
Encoded = tuple[Tensor, Tensor | None, Tensor | None, Tensor]


def _encode(groups: Tensor, fmt: WeightFormat, rungs: bool) -> Encoded:
    if fmt.name == "int4":
        return _encode_int4(groups, fmt.zero_point, rungs)
    if fmt == INT8:
        return _encode_int8(groups)
    if fmt == FP8:
        scale, code = floats.encode_fp8(groups[:, 0])
        return scale, None, None, code[:, None]
    if fmt == FP8_BLOCK:
        multiplier, code = floats.encode_fp8_block(groups, BLOCK_ROWS)
        return torch.where(groups.isfinite().flatten(1).all(1), 1.0, torch.nan), multiplier, None, code
    scale, multiplier, code = floats.encode_nvfp4(groups) if fmt == NVFP4 else floats.encode_mxfp4(groups)
    return scale, multiplier, None, code


def _encode_int8(groups: Tensor) -> Encoded:
    scale = groups.abs().amax((1, 2)) / 127
    return scale, None, None, (groups * _inverse(scale)[:, None]).round_().add_(128)


def _encode_int4(groups: Tensor, zero_point: bool, rungs: bool) -> Encoded:
    """Without a zero point codes are -8 .. 7, and the scale's sign is such that the group's largest weight takes the longer side."""
    low, high = groups.aminmax(dim=-1)
    if zero_point:
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = _least_error(groups, (high - low) / 15, lambda step: _zero_point(low, step))
        zero = _zero_point(low, step)
    else:
        zero = torch.full_like(low, MIDDLE)
        step = _least_error(groups, torch.where(-low > high, low, high) / -8, lambda step: zero)
    scale, multiplier = _multipliers(step, zero, rungs)
    return scale, multiplier, zero, _codes(groups, multiplier * (scale / RUNG)[:, None], zero)


def _multipliers(step: Tensor, zero: Tensor, rungs: bool) -> tuple[Tensor, Tensor]:
    """Scales of outputs and multipliers of groups whose codes are `step` apart."""
    if rungs:
        int8_steps = (127 / torch.maximum(zero, 15 - zero)).floor()  # that a code may be: its group's rungs stay within 127
        scale = (step.abs() / int8_steps).amax(-1)
        return scale, (step * _inverse(scale) * RUNG).round_()
    largest, most = step.abs().amax(-1), 2**MULTIPLIER_BITS
    scale = torch.where(largest.isfinite(), torch.exp2(torch.frexp(largest).exponent.float()) * (RUNG / most), torch.nan)
    return scale, (step / scale[:, None] * RUNG).round_().clamp_(1 - most, most - 1)


def _zero_point(low: Tensor, step: Tensor) -> Tensor:
    return (-low * _inverse(step)[..., 0]).round_().clamp_(0, 15)


def _least_error(groups: Tensor, step: Tensor, zero_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The best of `step` times each clip ratio; zero_of(step) is the zero point that goes with it."""
    best_error, best_step = torch.full_like(step, torch.inf), step
    for ratio in CLIP_RATIOS:
        candidate = step * ratio
        zero = zero_of(candidate)
        off = _codes(groups, candidate, zero).sub_(zero.unsqueeze(-1)).mul_(candidate.unsqueeze(-1)).sub_(groups)
        error = torch.linalg.vecdot(off, off)
        better = error < best_error
        best_error, best_step = torch.where(better, error, best_error), torch.where(better, candidate, best_step)
    return best_step


def _codes(groups: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return (groups * _inverse(step)).round_().add_(zero.unsqueeze(-1)).clamp_(0, 15)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale with a last dimension to broadcast over; 0 for the scale of zeros alone."""
    return torch.where(scale == 0, 0.0, 1 / scale).unsqueeze(-1)
