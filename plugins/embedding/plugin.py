"""slipway::embedding: one table row for each token."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch, PackedWeight, on_gpu
from slipway.plugins.rendering import CPP_TYPES, render, symbol

ROW_THREADS = 256  # of the block that copies a row, on a GPU


@torch.library.custom_op("slipway::embedding", mutates_args=())
def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """ids[T], weight[V, H] -> [T, H]."""
    return weight[ids.long()]


@embedding.register_fake
def _(ids: Tensor, weight: Tensor) -> Tensor:
    return weight.new_empty(ids.shape[0], weight.shape[1])


def pack_table(table: Tensor) -> np.ndarray:
    """Row-major bfloat16 [V, H]."""
    return table.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().reshape(-1)


class EmbeddingPlugin:
    """The runtime has checked that every id is a row of the table."""

    ops = ("slipway::embedding",)

    def supports(self, node: Node, target: Target) -> str | None:
        if node.args[0].name != "input_ids":
            return f"rows by %{node.args[0].name}, not by the batch's input_ids"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        table = node.args[1]
        columns = table.meta["val"].shape[1]
        dtype = node.meta["storage"]
        name = symbol("embedding", columns, dtype)
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, columns=columns, Out=CPP_TYPES[dtype], threads=ROW_THREADS),
            inputs=(),
            output_dtypes=(dtype,),
            weights=(PackedWeight((table,), pack_table, "rows_bf16", 2 * table.meta["val"].numel()),),
            launches=on_gpu(target, Launch(name, ROW_THREADS, (Extent("rows"), ONE, ONE))),
            token_ids=table.meta["val"].shape[0],
            cost=Cost(token_bytes=columns * (2 + dtype.itemsize)),
        )


PLUGIN = EmbeddingPlugin()
