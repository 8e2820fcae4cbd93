"""How a graph is written for people: a line a node, extents by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler import ops

# Extents that are known only at run time are stood for by primes no model has as a size: tokens, wanted logit rows,
# sequences, blocks a sequence, KV blocks. So shapes stay plain integers, and a shape still says what it counts.
EXTENTS = {"T": 1_000_003, "R": 1_000_033, "S": 1_000_037, "B": 1_000_039, "N": 1_000_081}


def extent_text(extent: int) -> str:
    """4096 -> "4096"; an extent known only at run time -> "T", "8*T" or "S+1"."""
    for name, prime in EXTENTS.items():
        if extent == prime + 1:
            return f"{name}+1"
        if extent and extent % prime == 0:
            return name if extent == prime else f"{extent // prime}*{name}"
    return str(extent)


def shape_text(shape: torch.Size) -> str:
    return f"[{', '.join(extent_text(extent) for extent in shape)}]"


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def line(node: Node) -> str:
    """`%q = aten.linear(%x, @model.layers.0.q_proj.weight)  [T, 4096]`; get_attr nodes stand where they are read."""
    if node.op == "output":
        return f"return {', '.join(_argument(a) for a in node.args[0])}"
    val = node.meta["val"]
    types = " ".join(map(_type_text, val)) if isinstance(val, (tuple, list)) else _type_text(val)
    if node.op == "placeholder":
        return f"%{node.name}  {types}"
    arguments = [_argument(a) for a in node.args] + [f"{name}={_argument(a)}" for name, a in node.kwargs.items()]
    return f"%{node.name} = {ops.op_name(node).replace('::', '.')}({', '.join(arguments)})  {types}"


def _argument(argument: Any) -> str:
    if isinstance(argument, Node):
        return f"@{argument.target}" if argument.op == "get_attr" else f"%{argument.name}"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_argument, argument))}]"
    return repr(argument)


def _type_text(val: Tensor) -> str:
    """float32, which nearly everything is, goes without saying."""
    return shape_text(val.shape) + ("" if val.dtype is torch.float32 else f" {dtype_text(val.dtype)}")
