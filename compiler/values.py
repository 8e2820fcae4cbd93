"""The values that a plan keeps in memory: outputs of nodes, and the views under which other nodes see them."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.graph_text import EXTENTS
from slipway.compiler.ops import is_constant, op_name

ROW_COUNTS = {EXTENTS["T"]: "tokens", EXTENTS["R"]: "logit_rows"}
VIEWS = ("aten::slice", "aten::split", "aten::split_with_sizes", "aten::chunk")


@dataclass(frozen=True)
class Value:
    """One output of a node."""

    node: Node
    index: int = 0

    @property
    def fake(self) -> torch.Tensor:
        """A meta tensor of the value's shape and type."""
        val = self.node.meta["val"]
        return val[self.index] if isinstance(val, (tuple, list)) else val


@dataclass(frozen=True)
class View:
    """Columns of a value, from `column` on."""

    value: Value
    column: int = 0


def outputs_of(node: Node) -> list[Value]:
    many = isinstance(node.meta["val"], (tuple, list))
    return [Value(node, i) for i in range(len(node.meta["val"]) if many else 1)]


def is_view(node: Node) -> bool:
    """Whether the node only renames columns, or outputs, of another."""
    if node.target is operator.getitem:
        return True
    if op_name(node) not in VIEWS or node.args[0].meta["val"].ndim != 2:
        return False
    place = 1 if op_name(node) == "aten::slice" else 2
    dim, step = node.args[place] if len(node.args) > place else 0, node.args[4] if len(node.args) > 4 else 1
    return dim in (1, -1) and step == 1


def resolve(node: Node, column: int = 0) -> View:
    """The value behind a chain of views, and the column where the view begins."""
    if node.target is operator.getitem:
        source, index = node.args
        if not is_view(source):
            return View(Value(source, index), column)
        return resolve(source.args[0], column + sum(_split_sizes(source)[:index]))
    if is_view(node):
        return resolve(node.args[0], column + (node.args[2] or 0))
    return View(Value(node), column)


def _split_sizes(node: Node) -> list[int]:
    return [value.shape[-1] for value in node.meta["val"]]


def rows_of(value: Value) -> str | None:
    """"tokens" or "logit_rows": which count the value's rows follow. None: it is not laid out in rows."""
    return ROW_COUNTS.get(value.fake.shape[0]) if value.fake.ndim else None


def is_inner(node: Node) -> bool:
    """Whether what the node makes is not laid out in rows: it is kept nowhere, whoever reads it computes it."""
    return node.op == "call_function" and not is_constant(node) and all(rows_of(value) is None for value in outputs_of(node))


def computed_nodes(graph: Graph) -> list[Node]:
    """Nodes that need a step: neither constants nor views of what a step has made, nor what is computed inside of steps."""
    return [n for n in graph.nodes if n.op == "call_function" and not (graph.is_constant(n) or is_view(n) or is_inner(n))]


def reads(node: Node) -> list[Node]:
    """What the node reads besides constants, behind inner nodes: placeholders, nodes that need a step, views of their values."""
    found: list[Node] = []
    for source in node.all_input_nodes:
        if not is_constant(source):
            found += reads(source) if is_inner(source) else [source]
    return found


def values_read(node: Node) -> list[Value]:
    """`reads`, behind views and without placeholders."""
    return [resolve(source).value for source in reads(node) if source.op == "call_function"]


def readers(value: Value) -> list[Node]:
    """Nodes that read the value, through views and inner nodes."""
    return _readers(value.node, value.index)


def _readers(node: Node, index: int | None) -> list[Node]:
    found: list[Node] = []
    for user in node.users:
        if user.target is operator.getitem and index is not None and not is_view(node) and user.args[1] != index:
            continue
        found += _readers(user, None if is_inner(user) else 0) if is_view(user) or is_inner(user) else [user]
    return found
