"""Packs nvfp4 weights W[N, K] a second time, as cuBLASLt multiplies them: e2m1 codes row after row, then the e4m3 scale of each 16. Mirrors
cuda/scaled_groups.cuh.

Outputs and their padding are those of pack_cuda.Tiles; scales of outputs stand there alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from slipway.plugins.linear import pack_cuda
from slipway.quantization.formats import NVFP4, quantize

PIECE_ROWS, PIECE_GROUPS = 128, 4  # whose scales lie together


def scale_bytes(rows: int, inputs: int) -> int:
    """Of so many rows, of weights or of activations."""
    return -(-rows // PIECE_ROWS) * PIECE_ROWS * scales_of_row(inputs)


def scales_of_row(inputs: int) -> int:
    return pack_cuda.num_chunks(inputs) * PIECE_GROUPS


def packed_bytes(outputs: int, inputs: int, gated: bool) -> int:
    rows = pack_cuda.num_tiles(outputs, gated) * pack_cuda.TILE
    return rows * pack_cuda.num_chunks(inputs) * pack_cuda.CHUNK // 2 + scale_bytes(rows, inputs)


def pack(*weights: Tensor) -> np.ndarray:
    """(W[N, K]), or (gate[N, K], up[N, K]), whose tiles take turns -> bytes."""
    codes, scales = [], []
    for each in pack_cuda.tile_rows(weights):
        quantized = [quantize(rows, NVFP4) for rows in each]
        codes.append(_in_turns([_pairs(q.codes) for q in quantized]))
        scales.append(_in_turns([pad(q.multipliers, (0, scales_of_row(rows.shape[1]) - q.multipliers.shape[1])) for q, rows in zip(quantized, each)]))
    return torch.cat([torch.cat(codes).flatten(), _in_pieces(torch.cat(scales)).flatten()]).numpy()


def _in_turns(same: list[Tensor]) -> Tensor:
    """[rows, bytes] of each weight -> [rows of all, bytes]: a tile of the first, a tile of the second."""
    return torch.stack([rows.view(-1, pack_cuda.TILE, rows.shape[1]) for rows in same], 1).flatten(0, 2)


def _pairs(codes: Tensor) -> Tensor:
    """u8 [rows, K] -> [rows, K / 2], the first of two in the low half, whole chunks."""
    whole = pad(codes, (0, -codes.shape[1] % pack_cuda.CHUNK))
    return whole[:, ::2] | whole[:, 1::2] << 4


def _in_pieces(scales: Tensor) -> Tensor:
    """[rows, groups] -> [pieces of rows, pieces of groups, 32, 4, 4]: in a piece every 32nd row is a neighbour."""
    whole = pad(scales, (0, 0, 0, -len(scales) % PIECE_ROWS))
    return whole.view(-1, 4, 32, whole.shape[1] // PIECE_GROUPS, PIECE_GROUPS).permute(0, 3, 2, 1, 4)
