"""slipway::draw_tokens: a token from each wanted row of logits, on a GPU; on a CPU the runtime draws."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.plugin import ONE, Cost, Extent, Kernel, Launch
from slipway.plugins.rendering import render, symbol

# kernel.cuh
GROUP, SCAN_THREADS, SCANNED = 128, 256, 4096
THREADS, WARPS, MOST_CANDIDATES = 512, 16, 4096
MOST_VOCABULARY = 1 << 19  # so that what a block shares fits every GPU


@torch.library.custom_op("slipway::draw_tokens", mutates_args=())
def draw_tokens(logits: Tensor) -> Tensor:
    """logits[R, V] -> int32 [R]: the best. A plan draws as each row's request asks: runtime/native/sampler.hpp."""
    return logits.argmax(-1).int()


@draw_tokens.register_fake
def _(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int32)


class DrawTokensPlugin:
    """The logits are float32, and the batch's draws say how."""

    ops = ("slipway::draw_tokens",)

    def supports(self, node: Node, target: Target) -> str | None:
        if not target.gpu:
            return "the runtime draws on a CPU"
        if (vocabulary := node.args[0].meta["val"].shape[1]) > MOST_VOCABULARY:
            return f"a vocabulary of {vocabulary}: at most {MOST_VOCABULARY}"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        logits = node.args[0]
        vocabulary = logits.meta["val"].shape[1]
        groups = -(-vocabulary // GROUP)
        name = symbol("draw_tokens", vocabulary)
        scan = Launch(f"{name}_scan", SCAN_THREADS, (Extent(fixed=-(-vocabulary // SCANNED)), Extent("rows"), ONE))
        shared_bytes = 8 * MOST_CANDIDATES + 4 * (groups + groups % 2) + 12 * WARPS + 8
        sizes = {"scan_threads": SCAN_THREADS, "scanned": SCANNED, "threads": THREADS, "group": GROUP, "shared_bytes": shared_bytes}
        return Kernel(
            symbol=name,
            source=render(__file__, target, symbol=name, vocabulary=vocabulary, **sizes),
            inputs=(logits,),
            output_dtypes=(torch.int32,),
            shared_scratch_per_row=8 * groups,
            launches=(scan, Launch(name, THREADS, (Extent("rows"), ONE, ONE), shared_bytes)),
            cost=Cost(token_bytes=4 * vocabulary),
        )


PLUGIN = DrawTokensPlugin()
