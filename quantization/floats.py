"""Weights as small floats: fp8 (e4m3), nvfp4 (e2m1 with an e4m3 scale for 16), mxfp4 (e2m1 with a power of two for 32).

nvfp4 follows NVIDIA's two-level scaling, mxfp4 the OCP Microscaling Formats specification 1.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX, E2M1_MAX = 448.0, 6.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1_BOUNDS = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))  # True: a tie goes up
E8M0_BIAS = 127
SMALLEST_BLOCK = 2.0**-40  # the largest weight of a block of fp8_block, taken as at least so much of its neighbours'
LARGEST_E8M0 = 141  # kernels add 113 to it in bfloat16's exponent
STEPS = (6.0, 4.0)  # what a group's largest weight may become; the one of less squared error is taken


def e4m3_bits(x: Tensor) -> Tensor:
    """float32 -> u8, to the nearest, beyond 448 as 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def e4m3_values(bits: Tensor) -> Tensor:
    return bits.view(torch.float8_e4m3fn).float()


def e2m1_codes(x: Tensor) -> Tensor:
    """float32 -> codes u8 (sign, two bits of exponent, one of fraction), to the nearest, ties to even, beyond 6 as 6."""
    size = x.abs()
    codes = sum((size >= bound if up else size > bound).to(torch.uint8) for bound, up in E2M1_BOUNDS)
    return codes | (x < 0).to(torch.uint8) << 3


def e2m1_values(codes: Tensor) -> Tensor:
    values = torch.cat([E2M1, -E2M1])
    return values[codes.long()]


def encode_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [rows, K] -> a scale a row, codes."""
    scale = rows.abs().amax(1) / E4M3_MAX
    return scale, e4m3_bits(rows * _inverse(scale)[:, None])


def encode_fp8_block(groups: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """float32 [N, groups, size] -> a multiplier of each group, the same for each `rows` of N; codes.

    Multipliers are within SMALLEST_BLOCK of the largest beside them: kernels count sums in one after the other.
    """
    largest = groups.abs().amax(-1)
    blocks = torch.nn.functional.pad(largest, (0, 0, 0, -len(largest) % rows)).view(-1, rows, largest.shape[1]).amax(1)
    multipliers = torch.maximum(blocks, blocks.amax(1, keepdim=True) * SMALLEST_BLOCK) / E4M3_MAX
    multiplier = torch.where(multipliers > 0, multipliers, 1.0).repeat_interleave(rows, 0)[: len(largest)]
    return multiplier, e4m3_bits(groups / multiplier[..., None])


def encode_nvfp4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [rows, groups, 16] -> a scale a row, e4m3 bits a group, codes."""
    largest = groups.abs().amax(-1)
    scale = largest.amax(1) / (E2M1_MAX * E4M3_MAX)
    inverse = _inverse(scale)[:, None]
    candidates = [_nvfp4_codes(groups, e4m3_bits(largest * inverse / step), scale) for step in STEPS]
    (bits, codes, error), (other_bits, other_codes, other_error) = candidates
    better = other_error < error
    return scale, torch.where(better, other_bits, bits), torch.where(better[..., None], other_codes, codes)


def _nvfp4_codes(groups: Tensor, bits: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes for groups of given scales, and the squared error of each group."""
    step = (e4m3_values(bits) * scale[:, None])[..., None]
    codes = e2m1_codes(groups * _inverse(step))
    return bits, codes, (e2m1_values(codes) * step - groups).square().sum(-1)


def encode_mxfp4(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [rows, groups, 32] -> ones, e8m0 bits a group, codes. The largest weight of a group has e2m1's largest exponent."""
    largest = groups.abs().amax(-1)
    exponent = torch.frexp(largest).exponent - 1 - 2  # frexp's fraction begins at 1/2; e2m1's largest exponent is 2
    bits = torch.where(largest > 0, exponent + E8M0_BIAS, 0).clamp(0, 255)
    codes = e2m1_codes(groups * torch.exp2((E8M0_BIAS - bits).float())[..., None])
    scale = torch.where(((bits <= LARGEST_E8M0) & largest.isfinite()).all(1), 1.0, torch.inf)
    return scale, bits.to(torch.uint8), codes


def decode_mxfp4_scale(bits: Tensor) -> Tensor:
    return torch.exp2(bits.float() - E8M0_BIAS)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
