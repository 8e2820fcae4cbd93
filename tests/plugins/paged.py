"""Ragged batches on a paged KV cache, through slipway::paged_attention's kernel and through its meaning."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from emulated_gpu import run_emulated
from kernel_harness import guarded, make_batch, run_kernel
from nodes import BF16, F32, call_node
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.gather_rows import plugin as gather_rows  # registers the op
from slipway.plugins.paged_attention import meaning
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE
from slipway.plugins.paged_attention.plugin import PLUGIN
from slipway.plugins.plugin import Kernel
from slipway.quantization.formats import KV_BF16, KvFormat


@dataclass(frozen=True)
class Shape:
    """The op's constants. rotary_dim 0: no rotation."""

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    rotary_dim: int = 0
    interleaved: bool = False
    norm: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False  # heads have one
    source: torch.dtype = BF16
    kv: KvFormat = KV_BF16

    @property
    def columns(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


@dataclass
class Sequences:
    """Tokens of several sequences, some of them in the cache; q|k|v rows of all tokens to come."""

    shape: Shape
    lengths: list[int]  # of the whole sequences
    seed: int = 0
    qkv: list[torch.Tensor] = field(init=False)
    block_table: np.ndarray = field(init=False)
    weights: dict[str, torch.Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        s = self.shape
        self.qkv = [torch.randn(n, s.columns).to(s.source) for n in self.lengths]
        blocks = [-(-n // BLOCK_SIZE) for n in self.lengths]
        self.block_table = np.full((len(blocks), max(blocks)), 2**30, np.int32)
        order = iter(torch.randperm(sum(blocks)).tolist())
        for row, count in enumerate(blocks):
            self.block_table[row, :count] = [next(order) for _ in range(count)]
        self.num_blocks = sum(blocks)
        angles = torch.outer(torch.arange(max(self.lengths)), 0.01 ** torch.linspace(0, 1, s.rotary_dim // 2))
        self.weights = {
            "q_norm": torch.rand(s.head_dim) + 0.5 if s.norm else None,
            "k_norm": torch.rand(s.head_dim) + 0.5 if s.norm else None,
            "rope": torch.stack((angles.cos(), angles.sin()), 1) if s.rotary_dim else None,
            "sinks": torch.randn(s.num_heads) * 3 if s.sinks else None,
        }

    def step(self, parts: list[tuple[int, int, int]], logit_rows: list[int] | None = None) -> Step:
        """One engine step of (sequence, first token, end) parts."""
        rows = torch.cat([self.qkv[s][begin:end] for s, begin, end in parts])
        counts = [end - begin for _, begin, end in parts]
        return Step(
            self,
            rows,
            positions=np.concatenate([np.arange(begin, end) for _, begin, end in parts]).astype(np.int32),
            cu_seqlens=np.cumsum([0, *counts]).astype(np.int32),
            kv_lens=np.array([end for *_, end in parts], np.int32),
            block_table=self.block_table[[s for s, *_ in parts]],
            logit_rows=None if logit_rows is None else np.array(logit_rows, np.int32),
        )


class Result(NamedTuple):
    out: torch.Tensor
    seconds: list[float]


@dataclass
class Step:
    sequences: Sequences
    rows: torch.Tensor
    positions: np.ndarray
    cu_seqlens: np.ndarray
    kv_lens: np.ndarray
    block_table: np.ndarray
    logit_rows: np.ndarray | None = None  # then the output is read there alone

    def _split(self) -> tuple[torch.Tensor, ...]:
        s = self.sequences.shape
        return self.rows.split([n * s.head_dim for n in (s.num_heads, s.num_kv_heads, s.num_kv_heads)], 1)

    def arguments(self, cache: torch.Tensor, dtype: torch.dtype) -> list:
        s, w = self.sequences.shape, self.sequences.weights
        q, k, v = (x.to(dtype) for x in self._split())
        batch = (self.positions, self.cu_seqlens, self.kv_lens, self.block_table)
        return [q, k, v, w["q_norm"], w["k_norm"], 1e-6, False, w["rope"], s.interleaved, *map(torch.from_numpy, batch), cache, 0,
                s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim**-0.5, s.window, s.softcap, w["sinks"]]  # fmt: skip

    def meaning(self, cache: torch.Tensor) -> torch.Tensor:
        """cache: [1, blocks, 2, kv_heads, block_size, head_dim] float32, written to. Of an int8 cache: what int8 holds is written."""
        exact, kv = meaning._write, self.sequences.shape.kv

        def rounded(cache: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *where: torch.Tensor) -> None:
            exact(cache, kv.round_trip(k), kv.round_trip(v), *where)

        with mock.patch.object(meaning, "_write", exact if kv == KV_BF16 else rounded):
            return torch.ops.slipway.paged_attention(*self.arguments(cache, F32))

    def lower(self, target: Target, storage: torch.dtype = F32) -> Kernel:
        return PLUGIN.lower(self._node(storage), target)

    def declined(self, target: Target) -> str | None:
        return PLUGIN.supports(self._node(F32), target)

    def _node(self, storage: torch.dtype) -> Node:
        arguments = self.arguments(new_cache(self.sequences), self.rows.dtype)
        node = call_node(torch.ops.slipway.paged_attention.default, *arguments, storage=storage)
        node.meta["kv_format"] = self.sequences.shape.kv
        if self.logit_rows is not None:
            node.graph.call_function(torch.ops.slipway.gather_rows.default, (node, node.graph.placeholder("logit_rows")))
        return node

    def run(self, kernel: Kernel, library: ctypes.CDLL, kv: np.ndarray, threads: int = 2, rounds: int = 1) -> Result:
        """kv: the kernel's own blocks, written to. Again `rounds` times."""
        s = self.sequences.shape
        out = torch.full((len(self.rows), s.num_heads * s.head_dim), torch.nan, dtype=kernel.output_dtypes[0])
        seconds = run_kernel(
            library,
            kernel.symbol,
            self._split(),
            [out],
            [self.packed_weights(kernel)] * rounds,
            make_batch(**self._batch()),
            threads,
            kv=kv,
            shared_scratch=kernel.shared_scratch_at(len(self.rows)),
            local_scratch=kernel.local_scratch,
        )
        return Result(out, seconds)

    def run_emulated(self, kernel: Kernel, library: ctypes.CDLL, kv: np.ndarray, seed: int, captured_sequences: int | None = None,
                     threads: int = 2) -> torch.Tensor:
        """As `run`, of a kernel for a GPU."""
        s, weights = self.sequences.shape, self.packed_weights(kernel)
        out = torch.full((len(self.rows), s.num_heads * s.head_dim), torch.nan, dtype=kernel.output_dtypes[0])
        batch = make_batch(**self._batch())
        run_emulated(library, kernel, self._split(), [out], weights, batch, kv=kv, seed=seed, captured_sequences=captured_sequences, threads=threads)
        return out

    def _batch(self) -> dict[str, np.ndarray]:
        batch = {name: getattr(self, name) for name in ("positions", "cu_seqlens", "kv_lens", "block_table", "logit_rows")}
        return {name: values for name, values in batch.items() if values is not None}

    def packed_weights(self, kernel: Kernel) -> list[np.ndarray]:
        values = [w for w in self.sequences.weights.values() if w is not None]
        return [w.pack(value) for w, value in zip(kernel.weights, values, strict=True)]


def new_cache(sequences: Sequences) -> torch.Tensor:
    s = sequences.shape
    return torch.zeros(1, sequences.num_blocks, 2, s.num_kv_heads, BLOCK_SIZE, s.head_dim)


def new_blocks(sequences: Sequences, kernel: Kernel, fill: int = 0) -> np.ndarray:
    return guarded(sequences.num_blocks * kernel.kv_block_bytes, fill)


