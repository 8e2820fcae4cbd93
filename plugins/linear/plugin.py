"""aten::linear and slipway::gated_linear: activations times a weight of any format."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler.errors import InternalError
from slipway.compiler.ops import is_op
from slipway.compiler.target import Target
from slipway.plugins.gated_activation.plugin import ACTIVATIONS
from slipway.plugins.linear.on_gpu import GpuProblem
from slipway.plugins.linear.on_host import HostProblem
from slipway.plugins.linear.pack_cuda import CHUNK
from slipway.plugins.plugin import Cost, Kernel
from slipway.plugins.rendering import CPP_TYPES, render, symbol
from slipway.quantization.formats import BF16, FORMATS


CODERS = ("slipway::rms_norm", "slipway::add_rms_norm", "slipway::gated_linear")  # a block of theirs can see a whole row, and so the scale of its codes


@torch.library.custom_op("slipway::gated_linear", mutates_args=())
def gated_linear(x: Tensor, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """x[T, K], gate[N, K], up[N, K] -> act(x gateᵀ) * (x upᵀ)."""
    linear = torch.nn.functional.linear
    return ACTIVATIONS[activation](linear(x, gate)) * linear(x, up)


@gated_linear.register_fake
def _(x: Tensor, gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape[0], gate.shape[0])


@torch.library.custom_op("slipway::linear_residual", mutates_args=())
def linear_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """x[T, K], weight[N, K], bias[N], residual[T, N] -> x weightᵀ + bias + residual."""
    return torch.nn.functional.linear(x, weight, bias) + residual


@linear_residual.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class LinearPlugin:
    """Inputs and outputs are stored as bfloat16 or float32, residuals as float32; sums are float32 or exact integers."""

    ops = ("aten::linear", "slipway::linear_residual", "slipway::gated_linear")

    def supports(self, node: Node, target: Target) -> str | None:
        x, weight = node.args[:2]
        shape, fmt = weight.meta["val"].shape, node.meta.get("weight_format", BF16)
        if len(shape) != 2 or x.meta["val"].ndim != 2 or not all(isinstance(extent, int) for extent in shape):
            return f"x of shape {list(x.meta['val'].shape)} and weight of shape {list(shape)}: only [rows, K] and a constant [N, K]"
        if fmt not in FORMATS:
            return f"no kernel for {fmt} weights"
        if _is_gated(node) and node.args[3] not in ACTIVATIONS:
            return f"activation {node.args[3]!r}: only {', '.join(ACTIVATIONS)}"
        if _residual(node) and not target.gpu:
            return "kernels of a CPU add no residual"
        return _problem(node, target).declined

    def lower(self, node: Node, target: Target) -> Kernel:
        problem = _problem(node, target)
        outputs, inputs, gated, fmt = problem.outputs, problem.inputs, problem.gated, problem.fmt
        x, *weights = node.args[: 3 if gated else 2]
        bias, residual = _bias(node), _residual(node)
        source, dtype = x.meta["storage"], node.meta["storage"]
        given, codes = codes_from(producer_of(x), target), codes_from(node, target)
        coded = given is not None
        if target.gpu:
            problem = _with_cublas(node, target).with_codes(coded, codes)
        if coded and problem.cublas.rows != given:
            raise InternalError(f"{node.name} takes codes from {problem.cublas.rows} rows on, {x.name} makes them from {given} on")
        factors = problem.cublas.factors.name if target.gpu and problem.cublas and problem.cublas.scaled else None
        activation = node.args[3] if gated else None
        traits = [t for t, there in ((activation, gated), ("bias", bias is not None), ("residual", residual is not None), (f"{factors}_activations", factors), ("coded", coded), (f"codes_from{codes}", codes)) if there]
        name = symbol("gated_linear" if gated else "linear", f"n{outputs}", f"k{inputs}", fmt, source, dtype, *traits)
        return Kernel(
            symbol=name,
            source=render(
                __file__,
                target,
                symbol=name,
                outputs=outputs,
                inputs=inputs,
                In=CPP_TYPES[source],
                Out=CPP_TYPES[dtype],
                activation=f"act::{activation}" if gated else "linear::None",
                biased=bias is not None,
                adds=residual is not None,
                **problem.constants,
            ),
            inputs=(x,) if residual is None else (x, residual),
            output_dtypes=(dtype,),
            weights=problem.packed_weights(tuple(weights), bias),
            shared_scratch=problem.shared_scratch,
            shared_scratch_per_row=problem.shared_scratch_per_row,
            local_scratch=problem.local_bytes,
            launches=problem.launches(name),
            counters=problem.counters,
            cost=Cost(
                weight_bytes=problem.weight_bytes + (0 if bias is None else 4 * outputs),
                token_bytes=inputs * source.itemsize + outputs * (dtype.itemsize + (0 if residual is None else 4)),
                token_flops=2 * len(weights) * outputs * inputs,
            ),
        )


def codes_from(producer: Node, target: Target) -> int | None:
    """From so many rows on, rows of what `producer` makes are codes and a scale (slipway/cuda/coded_rows.cuh); None: never.

    All who read it must be linears whose rows cuBLASLt multiplies in e4m3 from the same number on. A gated linear makes codes in the kernel that
    finishes what cuBLASLt multiplied: it must itself be cuBLASLt's from no more rows on.
    """
    if not target.gpu or not is_op(producer, *CODERS):
        return None
    values = [user for user in producer.users if user.args[1] == 0] if is_op(producer, "slipway::add_rms_norm") else [producer]
    readers = [reader for value in values for reader in value.users]
    if not all(is_op(reader, *LinearPlugin.ops) and [a for a in reader.args if a in values] == [reader.args[0]] for reader in readers):
        return None
    if any(PLUGIN.supports(reader, target) for reader in readers):
        return None
    linears = [_with_cublas(reader, target).cublas for reader in readers]
    rows = {each.rows if each and each.in_e4m3 and each.inputs % CHUNK == 0 else None for each in linears}
    if len(rows) != 1 or None in rows:
        return None
    (first,) = rows
    if not _is_gated(producer):
        return first
    own = _with_cublas(producer, target).cublas
    return first if own and own.rows <= first else None


def producer_of(x: Node) -> Node:
    """The op whose first output x is; else x itself."""
    return x.args[0] if is_op(x, "getitem") and x.args[1] == 0 else x


def _with_cublas(node: Node, target: Target) -> GpuProblem:
    source, dtype = node.args[0].meta["storage"], node.meta["storage"]
    return _problem(node, target).with_cublas(source, dtype, _bias(node) is not None, _residual(node) is not None, node.meta.get("activations", "bf16"))


def _bias(node: Node) -> Node | None:
    return None if _is_gated(node) or len(node.args) < 3 else node.args[2]


def _residual(node: Node) -> Node | None:
    return node.args[3] if is_op(node, "slipway::linear_residual") else None


def _problem(node: Node, target: Target) -> HostProblem | GpuProblem:
    shape = node.args[1].meta["val"].shape
    of = GpuProblem if target.gpu else HostProblem
    return of(*shape, node.meta.get("weight_format", BF16), _is_gated(node), target)


def _is_gated(node: Node) -> bool:
    return node.target is torch.ops.slipway.gated_linear.default


PLUGIN = LinearPlugin()
