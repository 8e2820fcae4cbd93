"""Reads, checks and writes engine.json: everything the runtime knows of an engine directory."""

from __future__ import annotations

from dataclasses import dataclass, field

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Size:
    """Bytes: fixed + per_token * num_tokens + per_logit_row * num_logit_rows."""

    fixed: int = 0
    per_token: int = 0
    per_logit_row: int = 0


@dataclass(frozen=True)
class Operand:
    """A column range of a buffer: row r starts at buffer + offset + r * row_bytes."""

    buffer: int
    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Buffer:
    """A range of the arena. `offset` is laid out at the limits; `size` is what a step uses of it."""

    name: str
    dtype: str  # "bf16", "f32", "i32", "i64"
    offset: int
    size: Size


@dataclass(frozen=True)
class WeightRef:
    """Packed bytes: a file below weights/, whole."""

    name: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """One call: of a kernel (`symbol` in kernels/<library>) or of an ONNX segment (`segment`, a file below segments/)."""

    name: str
    op: str
    rows: str  # "tokens" or "logit_rows"
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    weights: tuple[int, ...]
    symbol: str | None = None
    segment: str | None = None
    kv_layer: int | None = None
    cost: dict = field(default_factory=dict)


@dataclass(frozen=True)
class KvCache:
    """Blocks of block_size tokens; a layer's blocks are contiguous: [layers][num_blocks][block_bytes]."""

    layers: int
    block_size: int
    block_bytes: int  # of one layer: K and V of every KV head
    num_blocks: int  # default; the runtime may be told to use another number


@dataclass(frozen=True)
class Limits:
    max_sequence_length: int
    max_batch_tokens: int
    max_sequences: int
    max_logit_rows: int


@dataclass(frozen=True)
class Plan:
    arena_bytes: int
    shared_scratch_bytes: int
    local_scratch_bytes: int
    vocab_size: int
    logits: Operand  # f32 [num_logit_rows, vocab_size]
    library: str  # kernels/<name>
    buffers: tuple[Buffer, ...]
    weights: tuple[WeightRef, ...]
    steps: tuple[Step, ...]
    kv: KvCache
