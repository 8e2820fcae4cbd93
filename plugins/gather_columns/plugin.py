"""slipway::gather_columns: the columns of activations in the order of a weight whose groups are not neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.ops import is_constant
from slipway.compiler.target import Target
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch, PackedWeight, on_gpu
from slipway.plugins.rendering import CPP_TYPES, render, symbol

ROW_THREADS = 256  # of the block that has a row, on a GPU


@torch.library.custom_op("slipway::gather_columns", mutates_args=())
def gather_columns(x: Tensor, columns: Tensor) -> Tensor:
    """x[T, H], columns[K] -> [T, K]."""
    return x[:, columns]


@gather_columns.register_fake
def _(x: Tensor, columns: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], columns.shape[0])


def pack_columns(columns: Tensor) -> np.ndarray:
    return columns.int().contiguous().view(torch.uint8).numpy()


class GatherColumnsPlugin:
    """Which columns is a constant."""

    ops = ("slipway::gather_columns",)

    def supports(self, node: Node, target: Target) -> str | None:
        return None if is_constant(node.args[1]) else f"columns by %{node.args[1].name}, which is not a constant"

    def lower(self, node: Node, target: Target) -> Kernel:
        x, columns = node.args
        count = columns.meta["val"].shape[0]
        source, dtype = x.meta["storage"], node.meta["storage"]
        name = symbol("gather_columns", count, source, dtype)
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, columns=count, In=CPP_TYPES[source], Out=CPP_TYPES[dtype], threads=ROW_THREADS),
            inputs=(x,),
            output_dtypes=(dtype,),
            weights=(PackedWeight((columns,), pack_columns, "i32", 4 * count),),
            launches=on_gpu(target, Launch(name, ROW_THREADS, (Extent("rows"), ONE, ONE))),
            cost=Cost(weight_bytes=4 * count, token_bytes=count * (source.itemsize + dtype.itemsize)),
        )


PLUGIN = GatherColumnsPlugin()
