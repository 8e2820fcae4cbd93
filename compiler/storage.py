"""Chooses the type in which each value of a plan is stored."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.ops import op_name
from slipway.compiler.values import Value, computed_nodes, is_view, outputs_of, resolve, values_read

F32 = torch.float32
# inputs that carry the residual stream, kept in float32: op -> argument positions
RESIDUAL_ARGS = {"slipway::rms_norm": (0,), "slipway::add_rms_norm": (0, 1), "slipway::linear_residual": (3,)}
RESIDUAL_OUTPUTS = {"slipway::add_rms_norm": (1,)}


def choose_storage(graph: Graph, declined: dict[str, str]) -> dict[Value, torch.dtype]:
    """float32 for the residual stream, the logits and all that a segment touches; bfloat16 for other numbers.

    Integers and truth values stay as they are. The types are written into node.meta["storage"] too, where plugins look.
    """
    storage: dict[Value, torch.dtype] = {}
    wide: set[Value] = {resolve(n).value for n in graph.output_nodes()}
    for node in reversed(computed_nodes(graph)):
        for value in outputs_of(node):
            is_wide = value in wide or node.name in declined or value.index in RESIDUAL_OUTPUTS.get(op_name(node), ())
            storage[value] = value.fake.dtype if not value.fake.is_floating_point() else F32 if is_wide else torch.bfloat16
        wide |= set(values_read(node) if node.name in declined else _residuals(node, storage))
    for value, dtype in storage.items():
        _annotate(value, dtype)
    return storage


def _residuals(node: Node, storage: dict[Value, torch.dtype]) -> list[Value]:
    """What a kernel reads that must be float32."""
    op = op_name(node)
    passes_on = op == "slipway::gather_rows" and storage[Value(node)] is F32
    arguments = [a for i, a in enumerate(node.args) if i in RESIDUAL_ARGS.get(op, ()) or passes_on]
    return [resolve(a).value for a in arguments if isinstance(a, Node) and a.op == "call_function"]


def _annotate(value: Value, dtype: torch.dtype) -> None:
    node = value.node
    if isinstance(node.meta["val"], (tuple, list)):
        types = list(node.meta.get("storage") or [None] * len(node.meta["val"]))
        types[value.index] = dtype
        node.meta["storage"] = tuple(types)
    else:
        node.meta["storage"] = dtype
    for user in node.users:
        if is_view(user) and (user.target is not operator.getitem or user.args[1] == value.index):
            _annotate_views(user, dtype)


def _annotate_views(node: Node, dtype: torch.dtype) -> None:
    node.meta["storage"] = dtype
    for user in node.users:
        if is_view(user):
            _annotate_views(user, dtype)
