"""The graph every stage reads: torch.fx nodes over named weights, checked, printable and runnable."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from slipway.compiler import graph_text, ops
from slipway.compiler.errors import InternalError
from slipway.quantization.formats import WeightFormat

NAMESPACES = ("aten", "slipway")


@dataclass(frozen=True)
class WeightInfo:
    """Shape and stored type of a checkpoint tensor. codes: the format of those it is stored as, None: it is stored as numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: WeightFormat | None = None


class Graph:
    """Nodes in topological order. Every node but the output has meta["val"]: a meta tensor, or a tuple of them.

    weights: the checkpoint tensors that get_attr nodes name. constants: tensors the capture has made, named likewise.
    meta["path"]: the module of the checkpoint's model that a node comes from.
    """

    def __init__(self, weights: Mapping[str, WeightInfo] | None = None, constants: Mapping[str, Tensor] | None = None):
        self.fx = torch.fx.Graph()
        self.weights = dict(weights or {})
        self.constants = dict(constants or {})

    # building

    def input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Node:
        """A placeholder. Extents known only at run time are given as graph_text.EXTENTS."""
        node = self.fx.placeholder(name)
        node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        return node

    def attribute(self, name: str) -> Node:
        """The get_attr node of a weight or constant: one a name, before all that compute."""
        for node in self.fx.nodes:
            if node.op == "get_attr" and node.target == name:
                return node
        with self.fx.inserting_before(self._first_call()):
            node = self.fx.create_node("get_attr", name)
        node.meta |= {"val": self._leaf(name), "constant": True}
        return node

    def call(self, target: OpOverload | Callable, *args: Any, **kwargs: Any) -> Node:
        """Adds a call at the insertion point (graph.fx.inserting_before) with its meta["val"]."""
        return self.named_call(None, target, args, kwargs)

    def named_call(self, name: str | None, target: OpOverload | Callable, args: tuple, kwargs: dict[str, Any]) -> Node:
        if target is not operator.getitem:
            args, kwargs = ops.canonical(target, args, kwargs)
            name = name or ops.node_name("", target)
        node = self.fx.create_node("call_function", target, args, kwargs, name)
        self._infer(node)
        return node

    def output(self, *nodes: Node) -> None:
        """The logits, and the tokens drawn from them if the graph draws."""
        self.fx.output(nodes)

    def _first_call(self) -> Node:
        return next((n for n in self.fx.nodes if n.op not in ("placeholder", "get_attr")), self.fx._root)

    def _leaf(self, name: str) -> Tensor:
        if name in self.constants:
            constant = self.constants[name]
            return torch.empty(constant.shape, dtype=constant.dtype, device="meta")
        info = self.weights[name]
        return torch.empty(info.shape, dtype=torch.float32 if info.dtype.is_floating_point else info.dtype, device="meta")

    def _infer(self, node: Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        node.meta["val"] = node.target(*args, **kwargs)
        node.meta["constant"] = bool(node.all_input_nodes) and all(map(ops.is_constant, node.all_input_nodes))

    # asking

    @property
    def nodes(self) -> list[Node]:
        return list(self.fx.nodes)

    def placeholder(self, name: str) -> Node:
        return next(n for n in self.fx.nodes if n.op == "placeholder" and n.name == name)

    def output_nodes(self) -> list[Node]:
        return list(self.fx.output_node().args[0])

    def is_constant(self, node: Node) -> bool:
        """Whether the value depends on weights and constants alone."""
        return ops.is_constant(node)

    # running

    def evaluate(self, node: Node, weights: Mapping[str, Tensor]) -> Tensor:
        """The value of a constant node, reading only the weights it needs.

        Moved data keeps its stored type; arithmetic happens in float32.
        """
        if node.op == "get_attr":
            return self.constants[node.target] if node.target in self.constants else weights[node.target]
        if not self.is_constant(node):
            raise InternalError(f"{node.name} is not a constant")
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.evaluate(n, weights))
        if isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
            args = tuple(_widen(a) for a in args)
        return node.target(*args, **kwargs)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """The logits, computed node by node in float32; `inputs` by placeholder name, kv_cache is written to."""
        values: dict[Node, Any] = {}
        last_use = {source: node for node in self.fx.nodes for source in node.all_input_nodes}
        for node in self.fx.nodes:
            if node.op == "output":
                return values[node.args[0][0]]
            values[node] = self._value(node, values, inputs, weights)
            for source in node.all_input_nodes:
                if last_use[source] is node:
                    del values[source]
        raise InternalError("the graph has no output")

    def _value(self, node: Node, values: dict[Node, Any], inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Any:
        if node.op == "placeholder":
            return inputs[node.name]
        if node.op == "get_attr":
            return _widen(self.evaluate(node, weights))
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)

    # changing

    def copy(self, renumber: bool = False) -> Graph:
        """Nodes of its own; weights' infos and constants are shared. renumber: names count up again, without gaps."""
        other, copies = Graph(self.weights, self.constants), {}
        for node in self.fx.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), copies.__getitem__)
            name = re.sub(r"(_\d+)+$", "", node.name) if renumber else node.name
            copies[node] = other.fx.create_node(node.op, node.target, args, kwargs, name)
            copies[node].meta = dict(node.meta)
        return other

    def drop_dead(self) -> int:
        """Removes nodes, weights and constants that the output does not need; says how many nodes."""
        dead = 0
        for node in reversed(self.nodes):
            if not node.users and node.op in ("call_function", "get_attr"):
                self.fx.erase_node(node)
                dead += 1
        named = {node.target for node in self.fx.nodes if node.op == "get_attr"}
        self.weights = {name: info for name, info in self.weights.items() if name in named}
        self.constants = {name: tensor for name, tensor in self.constants.items() if name in named}
        return dead

    def sort(self) -> None:
        """Brings nodes into topological order: a node moves up only if one above it reads it."""
        placed: dict[Node, None] = {}
        for node in self.nodes:
            self._place(node, placed, ())
        order = list(placed)
        for above, node in zip(order, order[1:]):
            if above.next is not node:
                above.append(node)

    def _place(self, node: Node, placed: dict[Node, None], below: tuple[Node, ...]) -> None:
        """Puts what the node reads into `placed`, then the node. below: the nodes that this is done for."""
        if node in below:
            raise InternalError(f"%{node.name} depends on itself")
        for source in node.all_input_nodes:
            if source not in placed:
                self._place(source, placed, (*below, node))
        placed[node] = None

    # checking

    def verify(self) -> None:
        """Raises InternalError for a graph that breaks its own rules."""
        seen: set[Node] = set()
        for node in self.fx.nodes:
            for source in node.all_input_nodes:
                if source not in seen:
                    raise InternalError(f"%{node.name} reads %{source.name} before it is made")
            seen.add(node)
            self._verify_node(node)
        if not seen or node.op != "output":
            raise InternalError("the graph has no output")

    def _verify_node(self, node: Node) -> None:
        if node.op == "output":
            return
        if "val" not in node.meta:
            raise InternalError(f"%{node.name} has no type")
        if node.op == "get_attr" and node.target not in self.weights and node.target not in self.constants:
            raise InternalError(f"%{node.name} names the unknown weight {node.target}")
        if node.op == "call_function":
            if node.target is not operator.getitem and node.target.namespace not in NAMESPACES:
                raise InternalError(f"%{node.name} calls {node.target}; only {', '.join(NAMESPACES)} ops are allowed")
            self._verify_type(node)
        elif node.op not in ("placeholder", "get_attr"):
            raise InternalError(f"%{node.name} is a {node.op}")

    def _verify_type(self, node: Node) -> None:
        stated = node.meta["val"]
        self._infer(node)
        found, node.meta["val"] = node.meta["val"], stated
        if _types(found) != _types(stated):
            raise InternalError(f"%{node.name} is said to be {_types(stated)} but is {_types(found)}")

    # reading

    def text(self) -> str:
        """One line a node; weights appear as @name where they are read."""
        return "\n".join(graph_text.line(node) for node in self.fx.nodes if node.op != "get_attr") + "\n"

    def diff(self, other: Graph) -> str:
        """Unified diff of the text forms; empty when they say the same."""
        lines = difflib.unified_diff(self.text().splitlines(), other.text().splitlines(), "before", "after", lineterm="", n=1)
        return "\n".join(lines)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _types(val: Any) -> Any:
    return [_types(v) for v in val] if isinstance(val, (tuple, list)) else (tuple(val.shape), val.dtype)
