"""Graph nodes as plugins see them after planning: placeholders and one call, with fake values and storage types."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import torch
from kernel_harness import compile_kernel
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node

from slipway.compiler.target import Target
from slipway.plugins.plugin import Kernel

F32, BF16 = torch.float32, torch.bfloat16


def call_node(op: torch._ops.OpOverload, *args: object, storage: torch.dtype | tuple[torch.dtype, ...]) -> Node:
    """The node of op(*args). A tensor becomes a placeholder stored as it is, the value a fake tensor."""
    graph = Graph()
    nodes = [_placeholder(graph, f"arg{i}", a) if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    node = graph.call_function(op, tuple(nodes))
    node.meta.update(val=_fake_value(op, args), storage=storage)
    return node


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
