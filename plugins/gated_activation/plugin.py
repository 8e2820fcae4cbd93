"""slipway::gated_activation: act(gate) * up, for a merged gate|up linear."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch, on_gpu
from slipway.plugins.rendering import CPP_TYPES, render, symbol

BLOCK_THREADS = 256  # on a GPU
ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}


@torch.library.custom_op("slipway::gated_activation", mutates_args=())
def gated_activation(x: Tensor, activation: str) -> Tensor:
    """x[T, 2N] -> act(x[:, :N]) * x[:, N:]."""
    gate, up = x.float().chunk(2, -1)
    return (ACTIVATIONS[activation](gate) * up).to(x.dtype)


@gated_activation.register_fake
def _(x: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


class GatedActivationPlugin:
    ops = ("slipway::gated_activation",)

    def supports(self, node: Node, target: Target) -> str | None:
        if node.args[1] not in ACTIVATIONS:
            return f"activation {node.args[1]!r}: only {', '.join(ACTIVATIONS)}"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        x, activation = node.args
        columns = x.meta["val"].shape[1] // 2
        source, dtype = x.meta["storage"], node.meta["storage"]
        name = symbol("gated_activation", activation, columns, source, dtype)
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, activation=activation, columns=columns, In=CPP_TYPES[source], Out=CPP_TYPES[dtype],
                          threads=BLOCK_THREADS),
            inputs=(x,),
            output_dtypes=(dtype,),
            launches=on_gpu(target, Launch(name, BLOCK_THREADS, (Extent("rows"), Extent(fixed=-(-columns // BLOCK_THREADS)), ONE))),
            cost=Cost(token_bytes=columns * (2 * source.itemsize + dtype.itemsize), token_flops=8 * columns),
        )


PLUGIN = GatedActivationPlugin()
