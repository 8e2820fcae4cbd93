"""aten::linear and slipway::gated_linear: activations times a weight of any format, on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.target import Target
from slipway.plugins.gated_activation.plugin import ACTIVATIONS
from slipway.plugins.linear import pack
from slipway.plugins.plugin import Cost, Kernel, PackedWeight
from slipway.plugins.rendering import CPP_TYPES, render, symbol
from slipway.quantization.formats import BF16, FORMATS, WeightFormat

MAX_INTEGER_INPUTS = 65536  # beyond, a sum of code * plane may leave int32 (on AMX; elsewhere integers are summed a block at a time)
ROW_BLOCK_BYTES = 1_150_000  # of packed rows that share a core's L2 with the panels that pass


@torch.library.custom_op("slipway::gated_linear", mutates_args=())
def gated_linear(x: Tensor, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """x[T, K], gate[N, K], up[N, K] -> act(x gateᵀ) * (x upᵀ)."""
    linear = torch.nn.functional.linear
    return ACTIVATIONS[activation](linear(x, gate)) * linear(x, up)


@gated_linear.register_fake
def _(x: Tensor, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], gate.shape[0])


@dataclass(frozen=True)
class Problem:
    """Shapes and scratch of one linear on one target. Mirrors plugins/linear/host."""

    outputs: int
    inputs: int
    fmt: WeightFormat
    gated: bool
    target: Target

    @property
    def panels(self) -> pack.Panels:
        return pack.Panels(self.fmt, self.target.isa)

    @property
    def columns(self) -> int:
        return self.panels.columns(self.inputs)

    @property
    def row_bytes(self) -> int:
        """One packed row of activations."""
        isa, columns = self.target.isa, self.columns
        if self.fmt == BF16:
            return {"amx": 2 * columns, "avx512_bf16": 2 * columns + 64}.get(isa, 4 * columns)
        if isa == "amx":
            return 128 * -(-columns // 64) + 3 * 4
        return 4 * columns if isa == "avx2" else columns + columns // self.panels.block_k * 8

    @property
    def private_bytes(self) -> int:
        return 16 * self.row_bytes

    @property
    def local_bytes(self) -> int:
        """Scratch of a thread: rows it packs for itself; spread int4 weights; on AMX also the sums of the many-row kernel."""
        if self.target.isa != "amx":
            return self.private_bytes + (pack.PANEL * self.columns if self.fmt.group_size and self.target.isa != "avx2" else 0)
        steps = -(-self.columns // (32 if self.fmt == BF16 else 64))
        tiles = min(64, max(32, ROW_BLOCK_BYTES // (1024 * steps) // 2 * 2))
        sums = 2048 * tiles * (1 if tiles * steps * 1024 <= ROW_BLOCK_BYTES else 8)
        return self.private_bytes + sums + 2048 * min(steps, 128)


class LinearPlugin:
    """Inputs and outputs are stored as bfloat16 or float32; sums are float32 or exact integers."""

    ops = ("aten::linear", "slipway::gated_linear")

    def supports(self, node: Node, target: Target) -> str | None:
        if target.kind != "cpu":
            return f"no kernel for {target}"
        x, weight = node.args[:2]
        shape, fmt = weight.meta["val"].shape, node.meta.get("weight_format", BF16)
        if len(shape) != 2 or x.meta["val"].ndim != 2 or not all(isinstance(extent, int) for extent in shape):
            return f"x of shape {list(x.meta['val'].shape)} and weight of shape {list(shape)}: only [rows, K] and a constant [N, K]"
        if fmt not in FORMATS:
            return f"no kernel for {fmt} weights"
        if fmt != BF16 and shape[1] > MAX_INTEGER_INPUTS:
            return f"{shape[1]} inputs: integer sums hold {MAX_INTEGER_INPUTS}"
        if _is_gated(node) and node.args[3] not in ACTIVATIONS:
            return f"activation {node.args[3]!r}: only {', '.join(ACTIVATIONS)}"
        return None

    def lower(self, node: Node, target: Target) -> Kernel:
        gated = _is_gated(node)
        x, *weights = node.args[: 3 if gated else 2]
        bias = None if gated or len(node.args) < 3 else node.args[2]
        outputs, inputs = weights[0].meta["val"].shape
        fmt = node.meta.get("weight_format", BF16)
        problem = Problem(outputs, inputs, fmt, gated, target)
        source, dtype = x.meta["storage"], node.meta["storage"]
        activation = node.args[3] if gated else None
        traits = [t for t, there in ((activation, gated), ("bias", bias is not None)) if there]
        name = symbol("gated_linear" if gated else "linear", f"n{outputs}", f"k{inputs}", fmt, source, dtype, *traits)
        return Kernel(
            symbol=name,
            source=render(
                __file__,
                symbol=name,
                weights=_cpp_format(problem.panels),
                outputs=outputs,
                inputs=inputs,
                In=CPP_TYPES[source],
                Out=CPP_TYPES[dtype],
                activation=f"act::{activation}" if gated else "linear::None",
                biased=bias is not None,
                private_bytes=problem.private_bytes,
                local_bytes=problem.local_bytes,
            ),
            inputs=(x,),
            output_dtypes=(dtype,),
            weights=_packed_weights(tuple(weights), bias, problem),
            shared_scratch=32 * problem.row_bytes,
            shared_scratch_per_row=problem.row_bytes,
            local_scratch=problem.local_bytes,
            cost=Cost(
                weight_bytes=problem.panels.packed_bytes(outputs, inputs, gated) + (0 if bias is None else 4 * outputs),
                token_bytes=inputs * source.itemsize + outputs * dtype.itemsize,
                token_flops=2 * len(weights) * outputs * inputs,
            ),
        )


def _is_gated(node: Node) -> bool:
    return node.target is torch.ops.slipway.gated_linear.default


def _cpp_format(panels: pack.Panels) -> str:
    fmt = panels.fmt
    if fmt.group_size:
        return f"Int4<{fmt.group_size}, {str(fmt.zero_point).lower()}>"
    return "Bf16" if fmt == BF16 else f"Int8<{panels.block_k}>"


def _packed_weights(weights: tuple[Node, ...], bias: Node | None, problem: Problem) -> tuple[PackedWeight, ...]:
    panels = problem.panels
    key = f"{'gated_' * problem.gated}linear_{panels}"
    packed = PackedWeight(weights, panels.pack, key, panels.packed_bytes(problem.outputs, problem.inputs, problem.gated))
    if bias is None:
        return (packed,)
    return (packed, PackedWeight((bias,), pack.pack_bias, "linear_bias", 4 * pack.PANEL * pack.num_panels(problem.outputs, False)))


PLUGIN = LinearPlugin()
