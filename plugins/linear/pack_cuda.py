"""Packs the weight W[N, K] of a linear for CUDA kernels: tiles of 16 outputs, chunks of 64 inputs. Mirrors cuda/weights.cuh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from slipway.quantization.formats import BF16, BLOCK_ROWS, FP8_BLOCK, INT8, MXFP4, NVFP4, WeightFormat, quantize

TILE, CHUNK = 16, 64
FP4_SCALE = 2.0**13  # kernels multiply with 2^-13 of fp4 weights
E2M1_BITS = ((6, 7, 8, 15), (13, 10, 11, 14), (3, 4, 5, 12), (0, 1, 2, 9))  # of the codes of four registers: fraction, exponent, sign
CHUNK_ELEMENTS = 1 << 22  # of the weight at a time, so that float32 copies stay small


@dataclass(frozen=True)
class Tiles:
    """Weights of one format as CUDA kernels read them. Arrays lie behind each other: codes, float32 scales, what groups have."""

    fmt: WeightFormat

    def __str__(self) -> str:
        return f"tiles_{self.fmt}"

    def arrays(self, outputs: int, inputs: int, gated: bool) -> list[int]:
        """Bytes of each."""
        rows = num_tiles(outputs, gated) * TILE
        codes = rows * num_chunks(inputs) * CHUNK * self.fmt.bits // 8
        if self.fmt == BF16:
            return [codes]
        if self.fmt.group_size is None:
            return [codes, 4 * rows]
        if self.fmt == FP8_BLOCK:
            return [codes, 4 * rows // TILE * self.fmt.groups(inputs)]
        if self.fmt in (NVFP4, MXFP4):
            return [codes, 4 * rows, rows * num_chunks(inputs) * (CHUNK // self.fmt.group_size)]
        groups = rows * self.fmt.groups(inputs)
        return [codes, 4 * rows, 2 * groups, *([groups] if self.fmt.zero_point else [])]

    def packed_bytes(self, outputs: int, inputs: int, gated: bool) -> int:
        return sum(self.arrays(outputs, inputs, gated))

    def pack(self, *weights: Tensor) -> np.ndarray:
        """(W[N, K]), or (gate[N, K], up[N, K]), whose tiles take turns -> bytes."""
        sizes = self.arrays(*weights[0].shape, len(weights) == 2)
        packed = np.empty(sum(sizes), np.uint8)
        rest = np.split(packed, np.cumsum(sizes)[:-1])
        for each in tile_rows(weights):
            for i, same in enumerate(zip(*map(self._parts, each))):  # of one array
                flat = torch.stack([part.contiguous().view(len(each[0]) // TILE, -1).view(torch.uint8) for part in same], 1).flatten().numpy()
                rest[i][: flat.size], rest[i] = flat, rest[i][flat.size :]
        return packed

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """What each array holds of some whole tiles of one weight."""
        if self.fmt == BF16:
            return [_whole_chunks(rows.bfloat16(), 0)]
        quantized = quantize(rows, self.fmt, rungs=False)
        if self.fmt.group_size is None:
            return [_bytes(_whole_chunks(quantized.codes, 128 if self.fmt == INT8 else 0)), quantized.scales]
        if self.fmt == FP8_BLOCK:
            return [_bytes(_whole_chunks(quantized.codes, 0)), quantized.multipliers[::TILE]]
        if self.fmt in (NVFP4, MXFP4):
            return [_e2m1_words(_whole_chunks(quantized.codes, 0)), quantized.scales * FP4_SCALE, _by_chunk(quantized.multipliers, self.fmt.group_size)]
        groups = [_by_tile(g) for g in (quantized.multipliers, quantized.zeros) if g is not None]
        return [_nibbles(_whole_chunks(quantized.codes, 0)), quantized.scales / 128, *groups]


def num_tiles(outputs: int, gated: bool) -> int:
    return -(-outputs // TILE) * (2 if gated else 1)


def num_chunks(inputs: int) -> int:
    return -(-inputs // CHUNK)


def pack_bias(bias: Tensor) -> np.ndarray:
    """float32, zeros up to a whole tile."""
    return pad(bias.float(), (0, -len(bias) % TILE)).view(torch.uint8).numpy()


def tile_rows(weights: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
    """The same rows of each weight, some whole tiles and blocks at a time, zeros in the place of rows that do not exist."""
    outputs, inputs = weights[0].shape
    step = max(1, CHUNK_ELEMENTS // (BLOCK_ROWS * inputs)) * BLOCK_ROWS
    for begin in range(0, outputs, step):
        yield [pad(w[begin : begin + step], (0, 0, 0, -len(w[begin : begin + step]) % TILE)) for w in weights]


def _whole_chunks(rows: Tensor, fill: int) -> Tensor:
    return pad(rows, (0, -rows.shape[1] % CHUNK), value=fill)


def _by_tile(rows: Tensor) -> Tensor:
    """[outputs, groups] -> [tiles, groups, 16]."""
    return rows.view(-1, TILE, rows.shape[1]).transpose(1, 2)


def _bytes(codes: Tensor) -> Tensor:
    """u8 [outputs, K] -> [outputs][chunks][q][half][8], of every four the bytes 2 0 3 1."""
    return codes.view(len(codes), -1, 2, 4, 2, 4).transpose(2, 3)[..., [2, 0, 3, 1]]


def _fragments(codes: Tensor) -> Tensor:
    """u8 [outputs, K] -> [tiles, chunks, lane, m, element, register]: what each thread multiplies with."""
    # of an output: tile, second, g; of an input: chunk, half, q, odd m, pair, element
    parts = codes.view(-1, 2, 8, codes.shape[1] // CHUNK, 2, 4, 2, 2, 2)
    return parts.permute(0, 3, 2, 5, 4, 6, 8, 7, 1).reshape(len(parts), -1, 32, 4, 2, 4)


def _by_chunk(bits: Tensor, group: int) -> Tensor:
    """[outputs, groups] -> [tiles, chunks, 16, groups of a chunk]."""
    each = CHUNK // group
    whole = pad(bits, (0, -bits.shape[1] % each))
    return whole.view(-1, TILE, whole.shape[1] // each, each).transpose(1, 2)


def _e2m1_words(codes: Tensor) -> Tensor:
    """Words whose halves are elements 0 and 1 of the four registers, each code's bits where E2M1_BITS says."""
    halves = _fragments(codes).int()  # [..., element, register]
    places = [sum((halves[..., i] >> bit & 1) << place for bit, place in enumerate(bits)) for i, bits in enumerate(E2M1_BITS)]
    return sum(places).to(torch.uint16)


def _nibbles(codes: Tensor) -> Tensor:
    """Words: of register i element 0 is nibble i, element 1 nibble i + 4."""
    nibbles = _fragments(codes).flatten(-2)
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4
