"""slipway::gather_rows: only the rows whose logits are wanted go on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch, on_gpu
from slipway.plugins.rendering import CPP_TYPES, render, symbol

ROW_THREADS = 256  # of the block that copies a row, on a GPU


@torch.library.custom_op("slipway::gather_rows", mutates_args=())
def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[T, H], rows[R] -> [R, H]."""
    return x[rows.long()]


@gather_rows.register_fake
def _(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(rows.shape[0], x.shape[1])


class GatherRowsPlugin:
    """The rows are the batch's logit_rows."""

    ops = ("slipway::gather_rows",)

    def supports(self, node: Node, target: Target) -> str | None:
        if node.args[1].name != "logit_rows":
            return f"rows by %{node.args[1].name}, not by the batch's logit_rows"
        if not node.args[0].meta["val"].is_floating_point():
            return f"rows of {node.args[0].meta['val'].dtype}"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        x = node.args[0]
        columns = x.meta["val"].shape[1]
        source, dtype = x.meta["storage"], node.meta["storage"]
        name = symbol("gather_rows", columns, source, dtype)
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, columns=columns, In=CPP_TYPES[source], Out=CPP_TYPES[dtype], threads=ROW_THREADS),
            inputs=(x,),
            output_dtypes=(dtype,),
            launches=on_gpu(target, Launch(name, ROW_THREADS, (Extent("rows"), ONE, ONE))),
            cost=Cost(token_bytes=columns * (source.itemsize + dtype.itemsize)),
        )


PLUGIN = GatherRowsPlugin()
