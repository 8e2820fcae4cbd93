"""Attention on a GPU: what its kernels are rendered with, how they are launched, its scratch and KV blocks. Mirrors cuda/shape.cuh."""

from __future__ import annotations

from dataclasses import dataclass

from slipway.compiler.target import GPUS, Target
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE, Arguments
from slipway.plugins.plugin import ONE, Extent, Launch
from slipway.quantization.formats import KV_BF16, KV_FP8, KV_INT8, KvFormat

TILE_ROWS = 16  # query rows of a warp
PREPARE_THREADS = PREFILL_THREADS = DECODE_THREADS = 128
WARPS, STAGES = 4, 2
GROUP_THREADS, GROUP_ROWS, GROUP_STAGES, GROUP_STAGE_BLOCKS = 384, 128, 4, 2  # warpgroup_prefill.cuh
BARRIER_BYTES = 8
MOST_SPLITS = 32
BLOCKS_A_MULTIPROCESSOR = 2  # wanted of decode, so that enough bytes are under way
CACHES = {KV_BF16: "bf16", KV_INT8: "Int8Code", KV_FP8: "Fp8Code"}  # the format's class in C++
MOST_BLOCKS = BLOCKS_A_MULTIPROCESSOR * max(gpu.multiprocessors for gpu in GPUS.values())


@dataclass(frozen=True)
class GpuAttention:
    arguments: Arguments
    kv: KvFormat
    target: Target

    local_scratch = 0

    @property
    def declined(self) -> str | None:
        """Why no kernel takes it."""
        if (group := self.arguments.num_heads // self.arguments.num_kv_heads) > TILE_ROWS:
            return f"{group} query heads share a KV head: at most {TILE_ROWS}"
        return None

    @property
    def constants(self) -> dict[str, object]:
        """What launch.cuda.j2 asks for beside shapes and types."""
        return {"queries_at": self.shared_scratch, "Cache": CACHES[self.kv], "warpgroups": self.warpgroups}

    @property
    def warpgroups(self) -> bool:
        """Whether prompts are multiplied by warpgroups: in bf16, by a GPU that has them, of heads whose sums registers hold."""
        return self.target.kind == "sm90" and self.kv == KV_BF16 and self.arguments.head_dim in (64, 96, 128)

    @property
    def block_bytes(self) -> int:
        """Of one KV block."""
        return self.arguments.num_kv_heads * self._head_bytes

    @property
    def shared_scratch(self) -> int:
        """What splits come to. Their number is such that twice as many blocks as a GPU is to have are not reached. The same for all GPUs,
        and so is the source of the kernels.
        """
        return 2 * MOST_BLOCKS * self._partial_bytes

    @property
    def shared_scratch_per_row(self) -> int:
        """Queries, as they are multiplied."""
        return 2 * self.arguments.num_heads * self._key_columns

    @property
    def counters(self) -> int:
        """For each sequence and KV head whose blocks are split."""
        return MOST_BLOCKS

    def launches(self, symbol: str) -> tuple[Launch, ...]:
        a = self.arguments
        heads = a.num_heads + 2 * a.num_kv_heads
        prepare = Launch(f"{symbol}_prepare", PREPARE_THREADS, (Extent("tokens"), Extent(fixed=-(-heads // WARPS)), ONE), 4 * WARPS * a.head_dim)
        group = a.num_heads // a.num_kv_heads
        rows, threads, shared_bytes = WARPS * TILE_ROWS, PREFILL_THREADS, STAGES * self._head_bytes
        if self.warpgroups:
            rows, threads = GROUP_ROWS, GROUP_THREADS
            shared_bytes = _up(GROUP_STAGES * (GROUP_STAGE_BLOCKS * self._head_bytes + 2 * BARRIER_BYTES), 1024)
        tiles = Extent("tokens", times=group, per=rows, each_sequence=True)  # the last tile of a sequence may be a part
        prefill = Launch(f"{symbol}_prefill", threads, (tiles, Extent(fixed=a.num_kv_heads), ONE), shared_bytes, min_new_tokens=TILE_ROWS // group + 1)
        return (prepare, *self._decodes(symbol), prefill)

    def _decodes(self, symbol: str) -> list[Launch]:
        """With as many splits as fill the GPU, for 1, 2, 4 ... sequences, and one launch for all numbers that fill it by themselves."""
        a, launches, sequences, splits = self.arguments, [], 1, 2
        while splits > 1:
            splits = min(MOST_SPLITS, -(-self._wanted_blocks // (a.num_kv_heads * sequences)))
            grid = (Extent(fixed=splits), Extent(fixed=a.num_kv_heads), Extent("sequences"))
            most = sequences if splits > 1 else None
            launches.append(Launch(f"{symbol}_decode", DECODE_THREADS, grid, self._decode_shared_bytes,
                                   min_sequences=sequences // 2 + 1, max_sequences=most))  # fmt: skip
            sequences *= 2
        return launches

    @property
    def _wanted_blocks(self) -> int:
        return BLOCKS_A_MULTIPROCESSOR * self.target.gpu.multiprocessors

    @property
    def _key_columns(self) -> int:
        return _up(self.arguments.head_dim, 64 if self.warpgroups else 512 // self.kv.bits)

    @property
    def _head_bytes(self) -> int:
        value_rows = self.arguments.head_dim if self.kv == KV_BF16 else _up(self.arguments.head_dim, 16)
        return BLOCK_SIZE * ((self._key_columns + value_rows) * self.kv.bits // 8 + 2 * self.kv.scale_bytes)

    @property
    def _partial_bytes(self) -> int:
        return 4 * TILE_ROWS * (self.arguments.head_dim + 2)

    @property
    def _decode_shared_bytes(self) -> int:
        return WARPS * self._partial_bytes + 4


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
