"""slipway::rms_norm, add_rms_norm and head_rms_norm: rows scaled to a root mean square of one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.linear.plugin import codes_from
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch, PackedWeight, on_gpu
from slipway.plugins.rendering import CPP_TYPES, render, symbol

EACH, MOST_THREADS = 4, 1024  # columns a thread of a GPU takes, as far as a block has threads


def normalize(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool) -> Tensor:
    """x / rms(x) over the last dimension, times weight (or 1 + weight, as Gemma stores it)."""
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * (weight.float() + 1 if plus_one else weight.float())
    return normed.to(x.dtype)


@torch.library.custom_op("slipway::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool) -> Tensor:
    """x[T, H], weight[H] -> [T, H]."""
    return normalize(x, weight, eps, plus_one)


@torch.library.custom_op("slipway::add_rms_norm", mutates_args=())
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    """x, residual [T, H] -> (norm of the sum, the sum)."""
    total = x + residual
    return normalize(total, weight, eps, plus_one), total


@torch.library.custom_op("slipway::head_rms_norm", mutates_args=())
def head_rms_norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    """x[T, heads*head_dim], weight[head_dim] -> [T, heads*head_dim]: each head on its own."""
    heads = x.reshape(x.shape[0], -1, weight.shape[0])
    return normalize(heads, weight, eps, plus_one).reshape(x.shape)


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, plus_one: bool) -> Tensor:
    return torch.empty_like(x)


@add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor | None, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@head_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    return torch.empty_like(x)


def pack_scale(weight: Tensor) -> np.ndarray:
    return weight.float().contiguous().view(torch.uint8).numpy().reshape(-1)


def pack_scale_plus_one(weight: Tensor) -> np.ndarray:
    return pack_scale(weight.float() + 1)


def packed_scale(weight: Node, plus_one: bool) -> PackedWeight:
    """float32, the one of (1 + weight) already added."""
    pack, key = (pack_scale_plus_one, "f32_plus_one") if plus_one else (pack_scale, "f32")
    return PackedWeight((weight,), pack, key, 4 * weight.meta["val"].numel())


class RmsNormPlugin:
    """Storage of x and of the norm is free; the residual and the sum are float32. On a GPU many rows may be stored as codes (`codes_from`)."""

    ops = ("slipway::rms_norm", "slipway::add_rms_norm", "slipway::head_rms_norm")

    def supports(self, node: Node, target: Target) -> str | None:
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        adds = node.target is torch.ops.slipway.add_rms_norm.default
        *activations, weight, eps, plus_one = node.args
        x = activations[0]
        columns = x.meta["val"].shape[1]
        group = weight.meta["val"].shape[0] if weight is not None else columns
        dtypes = node.meta["storage"] if adds else (node.meta["storage"],)
        sources = [a.meta["storage"] for a in activations]
        threads = min(MOST_THREADS, -(-group // (32 * EACH)) * 32)
        op = "add_rms_norm" if adds else "rms_norm"
        codes = codes_from(node, target)
        traits = [t for t, there in (("unweighted", weight is None), (f"codes_from{codes}", codes)) if there]
        name = symbol(op, columns, group, *sources, *dtypes, eps, *traits)
        functions = {name: (1, codes - 1), f"{name}_codes": (codes, None)} if codes else {name: (1, None)}  # and rows that they are for
        source = render(
            __file__,
            target,
            symbol=name,
            op=op,
            types=", ".join(CPP_TYPES[d] for d in (*sources, dtypes[0])),
            In=CPP_TYPES[sources[0]],
            Residual=CPP_TYPES[sources[1]] if adds else "void",
            Out=CPP_TYPES[dtypes[0]],
            columns=columns,
            group=group,
            threads=threads,
            functions=list(zip(functions, (CPP_TYPES[dtypes[0]], "rms_norm::Codes"))),
            eps=eps,
            weighted=weight is not None,
        )
        return Kernel(
            symbol=name,
            source=source,
            inputs=tuple(activations),
            output_dtypes=tuple(dtypes),
            launches=on_gpu(target, *(
                Launch(function, threads, (Extent("rows"), Extent(fixed=columns // group), ONE), 8 * (threads // 32), min_rows=least, max_rows=most)
                for function, (least, most) in functions.items()
            )),
            weights=() if weight is None else (packed_scale(weight, plus_one),),
            cost=Cost(
                weight_bytes=4 * group if weight is not None else 0,
                token_bytes=columns * sum(d.itemsize for d in (*sources, *dtypes)),
                token_flops=(4 + adds) * columns,
            ),
        )


PLUGIN = RmsNormPlugin()
