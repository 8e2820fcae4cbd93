"""A linear on a GPU: what its kernels are rendered with, how they are launched, its packed weights. Mirrors plugins/linear/cuda."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.linear import pack_cuda
from slipway.plugins.linear.by_cublas import CublasLinear
from slipway.plugins.plugin import ONE, Extent, Launch, PackedWeight
from slipway.quantization.formats import BF16, WeightFormat

FEW_THREADS, FEW_WARPS, FEW_ROWS = 256, 8, (8, 16)  # few_rows.cuh
MANY_THREADS, MANY_TILES, BLOCK_ROWS, STAGES = 128, 8, 64, 3  # many_rows.cuh
GROUP_THREADS, GROUP_TILES, GROUP_ROWS, GROUP_STAGES = 384, 16, 128, 4  # warpgroup_rows.cuh
GROUP_SHARED_BYTES = GROUP_STAGES * GROUP_ROWS * pack_cuda.CHUNK * 2 + 1024  # activations, and barriers in a whole piece of alignment
GROUP_FILL = 0.75  # of a GPU's multiprocessors
MOST_SPLITS = 8
LEAST_CHUNKS = 4  # of a split of many_rows
BLOCKS_A_MULTIPROCESSOR = 2  # wanted, so that enough bytes are under way


@dataclass(frozen=True)
class GpuProblem:
    outputs: int
    inputs: int
    fmt: WeightFormat
    gated: bool
    target: Target
    cublas: CublasLinear | None = None  # of many rows

    declined = None
    local_bytes = 0

    def with_cublas(self, source: torch.dtype, dtype: torch.dtype, biased: bool, adds: bool, activations: str) -> GpuProblem:
        """The same, many rows of it by cuBLASLt if that takes them. source, dtype: of activations and outputs. activations: as a recipe has them."""
        found = CublasLinear(self.outputs, self.inputs, self.fmt, self.gated, biased, adds, source, dtype, activations, self.target)
        return replace(self, cublas=found if found.rows else None)

    def with_codes(self, coded: bool, codes_from: int | None) -> GpuProblem:
        """The same; coded: rows that are cuBLASLt's come as codes. codes_from: so many rows or more leave as codes."""
        return replace(self, cublas=self.cublas and replace(self.cublas, coded=coded, codes_from=codes_from))

    @property
    def tiles(self) -> pack_cuda.Tiles:
        return pack_cuda.Tiles(self.fmt)

    @property
    def blocks(self) -> int:
        """That have tiles of their own, of few_rows."""
        return pack_cuda.num_tiles(self.outputs, False)

    @property
    def splits(self) -> int:
        """Blocks that share a tile, each with some of the inputs."""
        wanted = -(-BLOCKS_A_MULTIPROCESSOR * self.target.gpu.multiprocessors // self.blocks)
        return max(1, min(MOST_SPLITS, wanted, pack_cuda.num_chunks(self.inputs) // FEW_WARPS))

    @property
    def many_blocks(self) -> int:
        """Along the outputs, of many_rows."""
        return -(-pack_cuda.num_tiles(self.outputs, self.gated) // MANY_TILES)

    @property
    def block_splits(self) -> int:
        """Blocks of many_rows that share outputs, where there is one block of rows. int4 in groups of 32 would spill registers."""
        if self.fmt.name == "int4" and self.fmt.group_size == 32:
            return 1
        wanted = -(-BLOCKS_A_MULTIPROCESSOR * self.target.gpu.multiprocessors // self.many_blocks)
        return max(1, min(MOST_SPLITS, wanted, pack_cuda.num_chunks(self.inputs) // LEAST_CHUNKS))

    @property
    def constants(self) -> dict[str, object]:
        """What launch.cuda.j2 asks for beside shapes and types."""
        ranges = self._ranges
        return {"weights": self._cpp_format, "ahead": self._ahead, "splits": self.splits, "block_splits": self.block_splits, "split": "split" in ranges,
                "many": "many" in ranges, "groups": "groups" in ranges, "cublas": self.cublas.constants if self.cublas else None}  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        return self.tiles.packed_bytes(self.outputs, self.inputs, self.gated)

    def packed_weights(self, weights: tuple[Node, ...], bias: Node | None) -> tuple[PackedWeight, ...]:
        packed = PackedWeight(weights, self.tiles.pack, f"{'gated_' * self.gated}linear_{self.tiles}", self.weight_bytes)
        biases = () if bias is None else (PackedWeight((bias,), pack_cuda.pack_bias, "linear_tiles_bias", 4 * pack_cuda.TILE * self.blocks),)
        return (packed, *biases, *(self.cublas.packed_weights(weights) if self.cublas else ()))

    def launches(self, symbol: str) -> tuple[Launch, ...]:
        grid = (Extent(fixed=self.blocks), Extent(fixed=self.splits), ONE)
        launches = [
            Launch(f"{symbol}_upto{rows}", FEW_THREADS, grid, self._few_shared_bytes(rows), min_rows=rows - 7, max_rows=rows) for rows in FEW_ROWS
        ]
        shapes = {
            "split": ("upto64", MANY_THREADS, (ONE, Extent(fixed=self.many_blocks), Extent(fixed=self.block_splits)), self._many_shared_bytes),
            "many": ("many", MANY_THREADS, (Extent("rows", per=BLOCK_ROWS), Extent(fixed=self.many_blocks), ONE), self._many_shared_bytes),
            "groups": ("groups", GROUP_THREADS, (Extent("rows", per=GROUP_ROWS), Extent(fixed=self._group_blocks), ONE), GROUP_SHARED_BYTES),
        }
        for name, (least, most) in self._ranges.items():
            suffix, *shape = shapes[name]
            launches.append(Launch(f"{symbol}_{suffix}", *shape, min_rows=least, max_rows=most))
        return (*launches, *(self.cublas.launches(symbol) if self.cublas else ()))

    @property
    def shared_scratch(self) -> int:
        """Sums of blocks that share outputs, of whichever launch has more; of cuBLASLt's rows what is not each row's."""
        few = self.splits * self.blocks * self._sums(FEW_ROWS[-1]) if self.splits > 1 else 0
        many = self.block_splits * self.many_blocks * BLOCK_ROWS * MANY_TILES * pack_cuda.TILE if self.block_splits > 1 else 0
        return max(4 * few, 4 * many, self.cublas.scratch_bytes if self.cublas else 0)

    @property
    def shared_scratch_per_row(self) -> int:
        return self.cublas.scratch_bytes_per_row if self.cublas else 0

    @property
    def counters(self) -> int:
        return max(self.blocks if self.splits > 1 else 0, self.many_blocks if self.block_splits > 1 else 0)

    @property
    def _ranges(self) -> dict[str, tuple[int, int | None]]:
        """Rows that each kernel of more than few rows is for, the first and the last (None: any number)."""
        ends = {"split": BLOCK_ROWS if self.block_splits > 1 else 0, "many": self._group_rows - 1 if self._group_rows else None, "groups": None}
        own, least, ranges = self.cublas.rows - 1 if self.cublas else None, FEW_ROWS[-1] + 1, {}
        for name, end in ends.items():
            most = min((rows for rows in (end, own) if rows is not None), default=None)
            if most is None or most >= least:
                ranges[name] = least, most
            if most is None:
                break
            least = max(least, most + 1)
        return ranges

    @property
    def _group_rows(self) -> int | None:
        """From so many on warpgroups multiply: where their blocks, which are large, fill the GPU. bf16 is cuBLASLt's long before."""
        if self.target.kind != "sm90" or self.fmt == BF16:
            return None
        row_blocks = -(-int(GROUP_FILL * self.target.gpu.multiprocessors) // self._group_blocks)
        return max(BLOCK_ROWS, (row_blocks - 1) * GROUP_ROWS) + 1

    @property
    def _group_blocks(self) -> int:
        """Along the outputs, of warpgroup_rows."""
        return -(-pack_cuda.num_tiles(self.outputs, self.gated) // GROUP_TILES)

    def _sums(self, rows: int) -> int:
        return (2 if self.gated else 1) * rows * pack_cuda.TILE

    def _few_shared_bytes(self, rows: int) -> int:
        return 4 * FEW_WARPS * self._sums(rows) + 4

    @property
    def _ahead(self) -> int:
        """Chunks of weights under way in few_rows; as many as registers hold."""
        return {16: 2, 8: 3 if self.gated else 4, 4: 4}[self.fmt.bits]

    @property
    def _many_shared_bytes(self) -> int:
        outputs = MANY_TILES * pack_cuda.TILE // (2 if self.gated else 1)
        return max(STAGES * BLOCK_ROWS * pack_cuda.CHUNK * 2, 4 * BLOCK_ROWS * (outputs + 4)) + 4

    @property
    def _cpp_format(self) -> str:
        traits = [str(self.fmt.group_size), str(self.fmt.zero_point).lower()] if self.fmt.name == "int4" else []
        name = "".join(word.capitalize() for word in self.fmt.name.split("_"))
        return f"{name}<{', '.join(['tiles', 'inputs', *traits])}>"
