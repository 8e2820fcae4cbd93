"""Graph nodes as plugins see them after planning: placeholders and one call, with fake values and storage types."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable

import torch
from kernel_harness import compile_kernel
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node

from slipway.compiler.target import ACTIVATION_FACTORS, Target
from slipway.plugins.linear.by_cublas import FACTORS
from slipway.plugins.plugin import Kernel
from slipway.quantization.formats import WeightFormat

F32, BF16 = torch.float32, torch.bfloat16
CODED_ACTIVATIONS = {f.weights: name for name, wanted in ACTIVATION_FACTORS.items() for f in FACTORS if f.name == wanted != "bf16"}  # by weights they are multiplied with


def call_node(op: torch._ops.OpOverload, *args: object, storage: torch.dtype | tuple[torch.dtype, ...]) -> Node:
    """The node of op(*args). A tensor becomes a placeholder stored as it is, the value a fake tensor."""
    graph = Graph()
    nodes = [_placeholder(graph, f"arg{i}", a) if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    node = graph.call_function(op, tuple(nodes))
    node.meta.update(val=_fake_value(op, args), storage=storage)
    return node


def norm_and_readers(op: str, inputs: int, *readers: tuple[int, WeightFormat]) -> tuple[Node, list[Node]]:
    """A norm of `inputs` columns in bf16, and linears that read it: outputs and weight format of each."""
    x, residual, weight = torch.zeros(2, inputs).bfloat16(), torch.zeros(2, inputs), torch.zeros(inputs)
    adds = op == "add_rms_norm"
    norm = call_node(getattr(torch.ops.slipway, op).default, x, *([residual] if adds else []), weight, 1e-6, False, storage=(BF16, F32) if adds else BF16)
    value = norm
    if adds:
        value = norm.graph.call_function(operator.getitem, (norm, 0))
        value.meta.update(val=norm.meta["val"][0], storage=BF16)
    return norm, [add_linear(value, *reader) for reader in readers]


def gated_and_readers(outputs: int, inputs: int, fmt: WeightFormat, *readers: tuple[int, WeightFormat]) -> tuple[Node, list[Node]]:
    """A gated linear with fp8 activations whose outputs are bf16, and linears that read it."""
    weight = torch.zeros(outputs, inputs, device="meta")
    gated = call_node(torch.ops.slipway.gated_linear.default, torch.zeros(2, inputs, device="meta"), weight, weight, "silu", storage=BF16)
    gated.args[0].meta["storage"] = BF16
    gated.meta.update(weight_format=fmt, activations="fp8")
    return gated, [add_linear(gated, *reader) for reader in readers]


def add_linear(x: Node, outputs: int, fmt: WeightFormat) -> Node:
    """A linear with fp8 activations that reads x."""
    weight = _placeholder(x.graph, f"weight{len(x.users)}", torch.zeros(outputs, x.meta["val"].shape[1], device="meta"))
    linear = x.graph.call_function(torch.ops.aten.linear.default, (x, weight))
    linear.meta.update(val=torch.zeros(2, outputs), storage=F32, weight_format=fmt, activations="fp8")
    return linear


def _fake_value(op: torch._ops.OpOverload, args: tuple) -> object:
    with FakeTensorMode() as mode:
        return op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))


def _placeholder(graph: Graph, name: str, value: torch.Tensor) -> Node:
    node = graph.placeholder(name)
    node.meta.update(val=value, storage=value.dtype)
    return node


def compile_together(kernels: Iterable[Kernel], target: Target) -> ctypes.CDLL:
    """One library of several kernels: reading the compiler's headers takes longer than most kernels."""
    return compile_kernel("\n".join({kernel.symbol: kernel.source for kernel in kernels}.values()), target)
