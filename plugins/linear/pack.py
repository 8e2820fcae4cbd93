"""Weights of a linear, as the checkpoint has them -> the panels its host kernel streams (ARCHITECTURE.md: layouts)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from slipway.quantization.floats import e4m3_values
from slipway.quantization.formats import BF16, BLOCK_ROWS, FP8, FP8_BLOCK, INT8, MXFP4, NVFP4, Quantized, WeightFormat, quantize

TILE, PANEL = 16, 32  # columns; a panel is two tiles
CHUNK_ELEMENTS = 1 << 22  # of the weight at a time, so that float32 copies stay small


@dataclass(frozen=True)
class Panels:
    """Weights of one format as the kernels of one instruction set read them: panels of 32 columns, each a row of blocks."""

    fmt: WeightFormat
    isa: str

    def __str__(self) -> str:
        return f"{self.fmt}k{self.block_k}" if self.fmt == INT8 else str(self.fmt)

    @property
    def block_k(self) -> int:
        """Inputs of one block. int8: where activations are int8 too, as many as share a scale; elsewhere an AMX tile's."""
        if self.fmt == INT8:
            return 64 if self.isa in ("amx", "avx2") else 128
        if self.fmt.name == "int4":
            return self.fmt.group_size
        return 64 if self.fmt.bits == 4 else 32

    @property
    def block_bytes(self) -> int:
        codes = PANEL * self.block_k * self.fmt.bits // 8
        if self.fmt.name == "int4":
            return codes + (128 if self.fmt.zero_point else 64)
        return codes + (PANEL * self.block_k // self.fmt.group_size if self.fmt in (NVFP4, MXFP4) else 0)

    def columns(self, inputs: int) -> int:
        """Inputs, filled up to whole blocks."""
        return -(-inputs // self.block_k) * self.block_k

    def packed_bytes(self, outputs: int, inputs: int, gated: bool = False) -> int:
        blocks = self.columns(inputs) // self.block_k * self.block_bytes
        return num_panels(outputs, gated) * (blocks + self._behind(inputs))

    def _behind(self, inputs: int) -> int:
        """Bytes a panel behind all panels: float32 scales of its columns; of fp8_block units of its two tiles."""
        if self.fmt == FP8_BLOCK:
            return 2 * 4 * self.fmt.groups(inputs)
        return 0 if self.fmt == BF16 else 4 * PANEL

    def pack(self, *weights: Tensor) -> np.ndarray:
        """(W[N, K]) or (gate[N, K], up[N, K]) -> bytes. A panel of a gated linear is 16 gate columns, then 16 up columns."""
        packed = np.empty(self.packed_bytes(*weights[0].shape, len(weights) == 2), np.uint8)
        rest, behind = packed, []
        for each in _whole_panels(weights):
            panels, scales = self._parts(each)
            flat = panels.contiguous().view(torch.uint8).flatten().numpy()
            rest[: flat.size], rest = flat, rest[flat.size :]
            behind.append(scales.flatten())
        rest[:] = torch.cat(behind).view(torch.uint8).numpy()
        return packed

    def _parts(self, each: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of some rows of each weight: panels, and float32 that lie behind all panels."""
        if self.fmt == BF16:
            return _bf16_panels(_in_turn(each)), torch.empty(0)
        quantized = [quantize(rows, self.fmt) for rows in each]
        codes, scales = _in_turn([q.codes for q in quantized]), _in_turn([q.scales for q in quantized])
        if self.fmt == INT8:
            return _int8_panels(codes, self.block_k), scales
        if self.fmt == FP8:
            return _fp8_panels(codes), scales
        multipliers = _in_turn([q.multipliers for q in quantized])
        if self.fmt == FP8_BLOCK:
            return _fp8_panels(codes), multipliers.view(-1, 2, TILE, multipliers.shape[1])[:, :, 0].transpose(1, 2).contiguous()
        if self.fmt in (NVFP4, MXFP4):
            return _fp4_panels(codes, multipliers, self.fmt), scales
        zeros = _in_turn([q.zeros for q in quantized]) if self.fmt.zero_point else None
        return _int4_panels(Quantized(self.fmt, codes, scales, multipliers, zeros), codes.shape[1]), scales


def num_panels(outputs: int, gated: bool) -> int:
    return -(-outputs // (PANEL // 2 if gated else PANEL))


def pack_bias(bias: Tensor) -> np.ndarray:
    """float32, zeros up to a whole panel."""
    return pad(bias.float(), (0, -len(bias) % PANEL)).view(torch.uint8).numpy()


def _whole_panels(weights: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
    """The same rows of each weight, some whole panels and blocks at a time, zeros in the place of rows that do not exist."""
    outputs, inputs = weights[0].shape
    step = max(1, CHUNK_ELEMENTS // (BLOCK_ROWS * inputs)) * BLOCK_ROWS
    for begin in range(0, outputs, step):
        yield [pad(w[begin : begin + step], (0, 0, 0, -len(w[begin : begin + step]) % (PANEL // len(weights)))) for w in weights]


def _in_turn(parts: list[Tensor]) -> Tensor:
    """Rows of each weight in panel order: a tile, or a panel, of each takes its turn."""
    return torch.stack([part.view(-1, PANEL // len(parts), *part.shape[1:]) for part in parts], 1).flatten(0, 2)


def _bf16_panels(rows: Tensor) -> Tensor:
    """[N, K] -> [N/32][K/32][tile 2][pair 16][n 16][2]."""
    values = pad(rows.bfloat16(), (0, -rows.shape[1] % 32))
    return values.view(len(values) // 32, 2, 16, -1, 16, 2).permute(0, 3, 1, 4, 2, 5)


def _int8_panels(codes: Tensor, block_k: int) -> Tensor:
    """[N, K] -> [N/32][K/block_k][tile 2][quad block_k/4][n 16][4]."""
    codes = pad(codes, (0, -codes.shape[1] % block_k))
    return codes.view(len(codes) // 32, 2, 16, -1, block_k // 4, 4).permute(0, 3, 1, 4, 2, 5)


def _fp8_panels(codes: Tensor) -> Tensor:
    """[N, K] -> [N/32][K/32][quad 8][tile 2][n 16][4]."""
    codes = pad(codes, (0, -codes.shape[1] % 32))
    return codes.view(len(codes) // 32, 2, TILE, -1, 8, 4).permute(0, 3, 4, 1, 2, 5)


def _fp4_panels(codes: Tensor, multipliers: Tensor, fmt: WeightFormat) -> Tensor:
    """[N, K] -> [N/32][K/64]{scale u8[groups][32]; [quad 16][n 16][4], column 16 + n in the high nibble}."""
    panels, groups = len(codes) // PANEL, 64 // fmt.group_size
    if fmt == NVFP4:
        multipliers = _without_subnormals(multipliers)
    codes = pad(codes, (0, -codes.shape[1] % 64)).view(panels, 2, TILE, -1, 16, 4)
    both = (codes[:, 0] | codes[:, 1] << 4).permute(0, 2, 3, 1, 4).flatten(2)
    scales = pad(multipliers, (0, -multipliers.shape[1] % groups)).view(panels, PANEL, -1, groups).permute(0, 2, 3, 1).flatten(2)
    return torch.cat([scales, both], -1)


def _without_subnormals(bits: Tensor) -> Tensor:
    """e4m3, not negative -> the same number with five bits of exponent, biased by 10, and three of fraction; 0, whose codes are 0, becomes 2^-10."""
    fraction, exponent = torch.frexp(e4m3_values(bits))  # fractions begin at 1/2
    return torch.where(bits > 0, (exponent + 9) * 8 + (fraction * 16 - 8), 0).to(torch.uint8)


def _int4_panels(quantized: Quantized, inputs: int) -> Tensor:
    """[N, K] -> [N/32][groups]{multiplier i16[32]; zero u8[32], 32 spare; [quad][n 16][k 1 0 3 2], column 16 + n in the high nibble}."""
    fmt = quantized.format
    panels, groups, size = len(quantized.codes) // 32, fmt.groups(inputs), fmt.group_size
    codes = pad(quantized.codes, (0, groups * size - inputs)).view(panels, 2, 16, groups, size // 4, 2, 2).flip(-1)
    both = (codes[:, 0] | codes[:, 1] << 4).permute(0, 2, 3, 1, 4, 5).reshape(panels, groups, -1)
    multipliers = quantized.multipliers.view(panels, 32, groups).transpose(1, 2).contiguous().view(torch.uint8)
    if not fmt.zero_point:
        return torch.cat([multipliers, both], -1)
    zeros = quantized.zeros.view(panels, 32, groups).transpose(1, 2)
    return torch.cat([multipliers, zeros, torch.zeros_like(zeros), both], -1)
