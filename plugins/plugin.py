"""What a plugin is: it turns one graph node into a kernel call with packed weights, buffers and a cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch.fx import Node

from slipway.compiler.target import Target


@dataclass(frozen=True)
class Cost:
    """What a step must move and compute.

    bytes = weight_bytes + token_bytes * tokens + kv_bytes * (cached tokens read, summed over sequences)
    flops = token_flops * tokens + kv_flops * (query tokens x cached tokens, summed over sequences)
    """

    weight_bytes: int = 0
    token_bytes: int = 0
    token_flops: int = 0
    kv_bytes: int = 0
    kv_flops: int = 0


@dataclass(frozen=True)
class PackedWeight:
    """A weight of the call: `pack` turns the values of `nodes` (constant graph nodes) into the kernel's bytes.

    `key` names format and layout version: with the values of the nodes it identifies the bytes. bytes: how many they are.
    """

    nodes: tuple[Node, ...]
    pack: Callable[..., np.ndarray]  # (*tensors) -> 1-D uint8
    key: str
    bytes: int


@dataclass(frozen=True)
class Extent:
    """One dimension of a grid: fixed + ceil(times * count / per) blocks, and one for each sequence if each_sequence; `of` says what is
    counted of a step, None: nothing.
    """

    of: Literal["rows", "tokens", "sequences"] | None = None
    times: int = 1
    per: int = 1
    fixed: int = 0
    each_sequence: bool = False

    def at(self, counts: Mapping[str, int]) -> int:
        counted = -(-self.times * counts[self.of] // self.per) if self.of else 0
        return self.fixed + counted + (counts["sequences"] if self.each_sequence else 0)


ONE = Extent(fixed=1)


@dataclass(frozen=True)
class ScratchRows:
    """Rows of numbers in a kernel's scratch: the first begins at `offset`, each `row_bytes` behind the one before."""

    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Matmul:
    """results[rows, outputs] = factors[rows, inputs] W[outputs, inputs]ᵀ by cuBLASLt, summed in float32.

    W: the call's weight of that number, its rows `weight_columns` numbers apart. factors: the type of W and of what it is multiplied with, "bf16",
    "e4m3" or "e2m1". results: "bf16" or "f32". source, destination: None for the call's first input, its first output. adds: results += the call's
    second input, numbers of their type.

    Of e2m1, two numbers a byte, 16 neighbours have an e4m3 scale. Scales lie behind W and behind the source's rows, as many as the graph was captured for, in pieces of 128 rows and
    four scales: that of row r and neighbours g at byte r % 32 * 16 + r / 32 % 4 * 4 + g % 4 of piece (r / 128, g / 4).
    """

    outputs: int
    inputs: int
    weight_columns: int
    factors: Literal["bf16", "e4m3", "e2m1"]
    results: Literal["bf16", "f32"]
    source: ScratchRows | None = None
    destination: ScratchRows | None = None
    weight: int = 0
    adds: bool = False


@dataclass(frozen=True)
class Launch:
    """One launch of a CUDA function, or with `matmul` of cuBLASLt's, which chooses threads and blocks by itself.

    It takes part in graphs captured for min_rows to max_rows rows and min_sequences to max_sequences sequences (None: any number), and only
    in those for steps in which some sequence has at least min_new_tokens tokens.
    """

    function: str
    threads: int
    grid: tuple[Extent, Extent, Extent]
    shared_bytes: int = 0
    min_rows: int = 1
    max_rows: int | None = None
    min_new_tokens: int = 1
    min_sequences: int = 1
    max_sequences: int | None = None
    matmul: Matmul | None = None

    def takes_part(self, rows: int, sequences: int = 1, longest: int = 1) -> bool:
        """In a graph for so many rows and sequences, of a step whose longest sequence has so many new tokens."""
        fits = self.min_rows <= rows <= (self.max_rows or rows) and self.min_sequences <= sequences <= (self.max_sequences or sequences)
        return fits and longest >= self.min_new_tokens


def on_gpu(target: Target, *launches: Launch) -> tuple[Launch, ...]:
    """The launches of a kernel that a CPU calls as one function."""
    return launches if target.gpu else ()


@dataclass(frozen=True)
class Kernel:
    """A call of one compiled function, or of CUDA functions one after the other. Inputs and outputs are in the order the C++
    side reads them.

    source: C++ that includes the plugin's headers and defines `extern "C" void <symbol>(const slipway::Call&)`, or CUDA C++ that
    defines the functions of `launches`; the same symbol always has the same source.
    shared_scratch, shared_scratch_per_row, local_scratch: bytes, of the team (or all blocks) and of each thread.
    """

    symbol: str
    source: str
    inputs: tuple[Node, ...]
    output_dtypes: tuple[torch.dtype, ...]
    weights: tuple[PackedWeight, ...] = ()
    shared_scratch: int = 0
    shared_scratch_per_row: int = 0
    local_scratch: int = 0
    launches: tuple[Launch, ...] = ()
    counters: int = 0  # of 32 bits, that its launches find at zero and leave so
    kv_layer: int | None = None  # the layer whose KV blocks the call reads and writes
    kv_block_bytes: int = 0  # of one block of that layer
    token_ids: int | None = None  # it reads a table that has rows for ids below this
    positions: int | None = None  # likewise
    cost: Cost = field(default_factory=Cost)

    def shared_scratch_at(self, rows: int) -> int:
        return self.shared_scratch + self.shared_scratch_per_row * rows


class Plugin(Protocol):
    """One op with its kernels. `ops` are the torch ops it owns, by name ("slipway::rms_norm")."""

    ops: tuple[str, ...]

    def supports(self, node: Node, target: Target) -> str | None:
        """None, or the reason why this node cannot run on the target."""

    def lower(self, node: Node, target: Target) -> Kernel:
        """The call that computes the node. Only for nodes that `supports` accepts."""
