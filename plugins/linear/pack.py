"""Weights of a linear, as the checkpoint has them -> the panels its host kernel streams (ARCHITECTURE.md: layouts)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from slipway.quantization.formats import BF16, INT8, Quantized, WeightFormat, quantize

PANEL = 32  # columns of a panel: two tiles
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
        return 32 if self.fmt == BF16 else self.fmt.group_size

    @property
    def block_bytes(self) -> int:
        if self.fmt.group_size:
            return self.fmt.group_size * 16 + (128 if self.fmt.zero_point else 64)
        return PANEL * self.block_k * self.fmt.bits // 8

    def columns(self, inputs: int) -> int:
        """Inputs, filled up to whole blocks."""
        return -(-inputs // self.block_k) * self.block_k

    def packed_bytes(self, outputs: int, inputs: int, gated: bool = False) -> int:
        blocks = self.columns(inputs) // self.block_k * self.block_bytes
        return num_panels(outputs, gated) * (blocks + (0 if self.fmt == BF16 else 4 * PANEL))

    def pack(self, *weights: Tensor) -> np.ndarray:
        """(W[N, K]) or (gate[N, K], up[N, K]) -> bytes. A panel of a gated linear is 16 gate columns, then 16 up columns."""
        packed = np.empty(self.packed_bytes(*weights[0].shape, len(weights) == 2), np.uint8)
        rest, scales = packed, []
        for rows in _panel_rows(weights):
            if self.fmt == BF16:
                part = _bf16_panels(rows)
            else:
                quantized = quantize(rows, self.fmt)
                part = _int4_panels(quantized, rows.shape[1]) if self.fmt.group_size else _int8_panels(quantized.codes, self.block_k)
                scales.append(quantized.scales)
            flat = part.contiguous().view(torch.uint8).flatten().numpy()
            rest[: flat.size], rest = flat, rest[flat.size :]
        if scales:
            rest[:] = torch.cat(scales).view(torch.uint8).flatten().numpy()
        return packed


def num_panels(outputs: int, gated: bool) -> int:
    return -(-outputs // (PANEL // 2 if gated else PANEL))


def pack_bias(bias: Tensor) -> np.ndarray:
    """float32, zeros up to a whole panel."""
    return pad(bias.float(), (0, -len(bias) % PANEL)).view(torch.uint8).numpy()


def _panel_rows(weights: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Rows in panel order, some whole panels at a time, zeros in the place of rows that do not exist."""
    outputs, inputs = weights[0].shape
    tile = PANEL // len(weights)
    step = max(1, CHUNK_ELEMENTS // (PANEL * inputs)) * tile
    for begin in range(0, outputs, step):
        parts = [pad(w[begin : begin + step], (0, 0, 0, -len(w[begin : begin + step]) % tile)) for w in weights]
        yield torch.stack([p.view(-1, tile, inputs) for p in parts], 1).view(-1, inputs)


def _bf16_panels(rows: Tensor) -> Tensor:
    """[N, K] -> [N/32][K/32][tile 2][pair 16][n 16][2]."""
    values = pad(rows.bfloat16(), (0, -rows.shape[1] % 32))
    return values.view(len(values) // 32, 2, 16, -1, 16, 2).permute(0, 3, 1, 4, 2, 5)


def _int8_panels(codes: Tensor, block_k: int) -> Tensor:
    """[N, K] -> [N/32][K/block_k][tile 2][quad block_k/4][n 16][4]."""
    codes = pad(codes, (0, -codes.shape[1] % block_k))
    return codes.view(len(codes) // 32, 2, 16, -1, block_k // 4, 4).permute(0, 3, 1, 4, 2, 5)


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
