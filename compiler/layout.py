"""Places the values of a plan in one arena: a buffer of rows each, which values that are not alive together share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from slipway.compiler.arena import ALIGNMENT, Lifetime, align, place
from slipway.compiler.plan import PlannedGraph
from slipway.compiler.values import Value, View, resolve, rows_of
from slipway.runtime import manifest

PAGE = 4096
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "f32", torch.int32: "i32", torch.int64: "i64", torch.bool: "bool"}


@dataclass(frozen=True)
class Layout:
    """buffers: with offsets at the limits. numbers: the buffer of each value."""

    buffers: tuple[manifest.Buffer, ...]
    numbers: dict[Value, int]
    arena_bytes: int
    storage: dict[Value, torch.dtype]

    def operand(self, view: View) -> manifest.Operand:
        dtype = self.storage[view.value]
        return manifest.Operand(self.numbers[view.value], view.column * dtype.itemsize, row_bytes(view.value, dtype))


def lay_out(planned: PlannedGraph, limits: manifest.Limits) -> Layout:
    values = [value for step in planned.steps for value in step.outputs]
    first = {value: i for i, step in enumerate(planned.steps) for value in step.outputs}
    first |= {resolve(node).value: 0 for node in planned.graph.output_nodes()[1:]}  # the next step begins with the tokens drawn
    last = {resolve(node).value: len(planned.steps) for node in planned.graph.output_nodes()}
    for i, step in enumerate(planned.steps):
        for view in step.inputs:
            last[view.value] = max(i, last.get(view.value, 0))
    sizes = [_size(value, planned.storage[value]) for value in values]
    offsets, arena_bytes = place([
        Lifetime(size.at(limits.max_batch_tokens, limits.max_logit_rows), first[value], last.get(value, first[value]))
        for value, size in zip(values, sizes)
    ])
    buffers = tuple(
        manifest.Buffer(f"{value.node.name}.{value.index}", DTYPE_NAMES[planned.storage[value]], offset, size)
        for value, size, offset in zip(values, sizes, offsets)
    )
    return Layout(buffers, {value: i for i, value in enumerate(values)}, arena_bytes, planned.storage)


def columns_of(value: Value) -> int:
    return math.prod(value.fake.shape[1:])


def row_bytes(value: Value, dtype: torch.dtype) -> int:
    """Rows a multiple of a page apart would all fall into the same few sets of a cache: those get a line more."""
    size = align(columns_of(value) * dtype.itemsize)
    return size + ALIGNMENT if size % PAGE == 0 else size


def _size(value: Value, dtype: torch.dtype) -> manifest.Size:
    size = row_bytes(value, dtype)
    return manifest.Size(per_token=size) if rows_of(value) == "tokens" else manifest.Size(per_logit_row=size)
