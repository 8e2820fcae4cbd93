"""Weights of a linear, as the checkpoint has them -> the panels its host kernel streams (ARCHITECTURE.md: layouts)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from slipway.quantization.formats import BF16, INT8, Quantized, WeightFormat, quantize

PANEL = 32  # columns of a panel: two tiles
CHUNK_ELEMENTS = 1 << 22  # of the weight at a time, so that float32 copies stay small


def block_k(fmt: WeightFormat) -> int:
    """Inputs of one block of a panel."""
    return {BF16: 32, INT8: 64}.get(fmt) or fmt.group_size


def block_bytes(fmt: WeightFormat) -> int:
    return fmt.group_size * 16 + (128 if fmt.zero_point else 64) if fmt.group_size else 2048


def num_panels(outputs: int, gated: bool) -> int:
    return -(-outputs // (PANEL // 2 if gated else PANEL))


def packed_bytes(outputs: int, inputs: int, fmt: WeightFormat, gated: bool = False) -> int:
    blocks = -(-inputs // block_k(fmt)) * block_bytes(fmt)
    return num_panels(outputs, gated) * (blocks + (0 if fmt == BF16 else 4 * PANEL))


def pack_linear(*weights: Tensor, fmt: WeightFormat) -> np.ndarray:
    """(W[N, K]) or (gate[N, K], up[N, K]) -> bytes. A panel of a gated linear is 16 gate columns, then 16 up columns."""
    outputs, inputs = weights[0].shape
    packed = np.empty(packed_bytes(outputs, inputs, fmt, len(weights) == 2), np.uint8)
    panels, scales = packed, []
    for rows in _panel_rows(weights):
        if fmt == BF16:
            part = _bf16_panels(rows)
        else:
            quantized = quantize(rows, fmt)
            part = _int4_panels(quantized, rows.shape[1]) if fmt.group_size else _int8_panels(quantized.codes)
            scales.append(quantized.scales)
        flat = part.contiguous().view(torch.uint8).flatten().numpy()
        panels[: flat.size], panels = flat, panels[flat.size :]
    if scales:
        panels[:] = torch.cat(scales).view(torch.uint8).flatten().numpy()
    return packed


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


def _int8_panels(codes: Tensor) -> Tensor:
    """[N, K] -> [N/32][K/64][tile 2][quad 16][n 16][4]."""
    codes = pad(codes, (0, -codes.shape[1] % 64))
    return codes.view(len(codes) // 32, 2, 16, -1, 16, 4).permute(0, 3, 1, 4, 2, 5)


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
