"""An exported program, in the shapes of the model that was traced -> a Graph whose every activation is [rows, columns].

The traced model sees a batch of one: [1, T, C], and [1, heads, T, head_dim] around attention. Here each of its values is a
node of the Graph, [rows, columns], and a *view* of that node: the shape and strides under which the model sees it. What only
moves views about leaves no node behind. What no rule knows gets its values in the model's shapes and is put back into
rows afterwards; it must not mix tokens, which are of different sequences, and that is tried on random numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from slipway.compiler.errors import UserError
from slipway.compiler.graph import Graph
from slipway.compiler.graph_text import EXTENTS
from slipway.compiler.ops import find, node_name, op_name
from slipway.compiler.row_wise import mixes_rows, row_dim

RENAMES = (
    "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::unsqueeze",
    "aten::squeeze", "aten::transpose", "aten::permute", "aten::movedim", "aten::select", "aten::slice", "aten::expand",
    "aten::alias", "aten::detach", "aten::t",
)  # fmt: skip
COPIES = ("aten::contiguous", "aten::clone", "aten::dropout", "aten::lift_fresh_copy", "aten::detach_")
CASTS = ("aten::to", "aten::_to_copy", "aten::type_as")
CHECKS = ("aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::sym_constrain_range_for_size")


@dataclass(frozen=True)
class Seen:
    """A node, and its value as the traced model sees it: a meta tensor that shares the node's storage."""

    node: Node
    view: Tensor

    @property
    def has_rows(self) -> bool:
        return row_dim(self.node.meta["val"]) is not None

    def covers(self, view: Tensor) -> bool:
        """Whether a view shows all of the node's elements."""
        base = self.node.meta["val"]
        return view.untyped_storage()._cdata == base.untyped_storage()._cdata and view.numel() == base.numel()


class Flattener:
    """Walks the nodes of an exported program and builds `graph`. paths: of each node's module, for names and messages."""

    def __init__(self, graph: Graph, values: dict[Node, Seen]):
        self.graph, self.values = graph, dict(values)
        self.path = self.op = ""

    def run(self, nodes: list[Node]) -> None:
        for node in nodes:
            if node.op == "call_function":
                self.path, self.op = module_path(node), str(node.target)
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
                self.values[node] = self._call(node, args, kwargs)
            elif node.op == "output":
                self.graph.output(self._packed(self.values[node.args[0][0]]))

    def _call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        if not isinstance(node.target, OpOverload):  # arithmetic on extents, getitem on tuples
            return node.target(*args, **kwargs)
        name, target = op_name(node), node.target
        if name in CHECKS:
            return None
        if name == "aten::sym_size":
            return args[0].view.shape[args[1]]
        if name in COPIES or name in CASTS and _meta(target, args, kwargs).dtype is args[0].view.dtype:
            return args[0]
        if not any(seen.has_rows for seen in _seen(args)):
            return self._constant(target, args, kwargs)
        if name.startswith("slipway::"):
            return self._plain(self._add(target, *(self._packed(a) if isinstance(a, Seen) else a for a in args)))
        if name in RENAMES and (renamed := self._renamed(target, args, kwargs)):
            return renamed
        if name in RULES and (known := RULES[name](self, *args, **kwargs)):
            return known
        return self._pointwise(target, args, kwargs) or self._anything(target, args, kwargs)

    # rules: each returns None when it does not apply

    def _renamed(self, target: OpOverload, args: tuple, kwargs: dict) -> Seen | None:
        try:
            view = _meta(target, args, kwargs)
        except RuntimeError:  # a view that strides do not allow, after a copy that was left out
            return None
        return Seen(args[0].node, view) if args[0].covers(view) else None

    def _pointwise(self, target: OpOverload, args: tuple, kwargs: dict) -> Seen | None:
        """All operands are seen alike, or are numbers, or are one vector over the columns."""
        first = next(seen for seen in _seen(args) if seen.has_rows)
        if torch.Tag.pointwise not in target.tags or not all(_alike(seen, first) for seen in _seen(args)):
            return None
        node = self._add(target, *(a.node if isinstance(a, Seen) else a for a in args), **kwargs)
        return Seen(node, node.meta["val"].as_strided(first.view.shape, first.view.stride()))

    def _embedding(self, weight: Seen, ids: Seen, *_: object) -> Seen:
        return self._plain(self._add(find("slipway::embedding"), ids.node, weight.node), *ids.view.shape)

    def _linear(self, x: Seen, weight: Seen, bias: Seen | None = None) -> Seen | None:
        if not _shows_columns(x):
            return None
        node = self._add(find("aten::linear"), x.node, weight.node, bias and bias.node)
        return self._plain(node, *x.view.shape[:-1])

    def _layer_norm(self, x: Seen, shape: list[int], *rest: Any) -> Seen | None:
        if not _shows_columns(x) or len(shape) != 1:
            return None
        rest = _map(rest, lambda seen: seen.node)
        return self._plain(self._add(find("aten::layer_norm"), x.node, shape, *rest), *x.view.shape[:-1])

    def _index(self, x: Seen, indices: list) -> Seen | None:
        rows = [(dim, i) for dim, i in enumerate(indices) if i is not None]
        if not _shows_columns(x) or len(rows) != 1 or rows[0][0] != row_dim(x.view) or rows[0][1].view.dim() != 1:
            return None
        node = self._add(find("slipway::gather_rows"), x.node, rows[0][1].node)
        return self._plain(node, *x.view.shape[: rows[0][0]], node.meta["val"].shape[0])

    def _slice(self, x: Seen, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Seen | None:
        width = x.view.shape[-1]
        if not _shows_columns(x) or dim % x.view.dim() != x.view.dim() - 1 or step != 1:
            return None
        start, end, _ = slice(start, end).indices(width)
        return self._plain(self._add(find("aten::slice.Tensor"), x.node, 1, start, end), *x.view.shape[:-1])

    def _split_with_sizes(self, x: Seen, sizes: list[int], dim: int = 0) -> tuple[Seen, ...] | None:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        parts = tuple(self._slice(x, dim, end - size, end) for size, end in zip(sizes, ends))
        return None if None in parts else parts

    def _split(self, x: Seen, size: int, dim: int = 0) -> tuple[Seen, ...] | None:
        width = x.view.shape[dim]
        return self._split_with_sizes(x, [min(size, width - start) for start in range(0, width, size)], dim)

    def _chunk(self, x: Seen, chunks: int, dim: int = 0) -> tuple[Seen, ...] | None:
        return self._split(x, math.ceil(x.view.shape[dim] / chunks), dim)

    def _cat(self, parts: list[Seen], dim: int = 0) -> Seen | None:
        lead = parts[0].view.shape[:-1]
        if dim % parts[0].view.dim() != len(lead) or not all(_shows_columns(p) and p.view.shape[:-1] == lead for p in parts):
            return None
        return self._plain(self._add(find("aten::cat"), [p.node for p in parts], 1), *lead)

    # everything else

    def _constant(self, target: OpOverload, args: tuple, kwargs: dict) -> Any:
        """A computation on weights alone, or on nothing."""
        if not any(True for _ in _seen(args)):
            self._fail("makes a tensor of its own")
        args, kwargs = _map((args, kwargs), lambda seen: seen.node)
        return self._outputs(self._add(target, *args, **kwargs), lambda node: Seen(node, node.meta["val"]))

    def _anything(self, target: OpOverload, args: tuple, kwargs: dict) -> Any:
        """The op as it is, on values in the model's shapes."""
        metas = _map((args, kwargs), lambda seen: seen.view)
        if target._schema.is_mutable or mixes_rows(target, *metas):
            self._fail("mixes tokens, or is not known to keep them apart")
        args, kwargs = _map(_map((args, kwargs), self._materialized), _free_extent)
        return self._outputs(self._add(target, *args, **kwargs), self._into_rows)

    def _outputs(self, node: Node, see: Callable[[Node], Seen]) -> Any:
        if not isinstance(node.meta["val"], (tuple, list)):
            return see(node)
        return tuple(see(self._add(operator.getitem, node, i)) for i in range(len(node.meta["val"])))

    def _materialized(self, seen: Seen) -> Node:
        """A node with the shape the model sees."""
        view, base = seen.view, seen.node.meta["val"]
        if view.shape == base.shape and view.stride() == base.stride():
            return seen.node
        order = sorted(range(view.dim()), key=lambda dim: (view.shape[dim] != 1, -view.stride(dim)))
        node = self._add(find("aten::reshape"), seen.node, _free_extent([view.shape[dim] for dim in order]))
        if order == sorted(order):
            return node
        return self._add(find("aten::permute"), node, [order.index(dim) for dim in range(view.dim())])

    def _into_rows(self, node: Node) -> Seen:
        """The inverse of _materialized."""
        val = node.meta["val"]
        rows = row_dim(val)
        if rows is None:
            return Seen(node, val)
        order = [rows, *(dim for dim in range(val.dim()) if dim != rows)]
        if any(val.shape[dim] != 1 for dim in range(rows)):
            node = self._add(find("aten::permute"), node, order)
        columns = math.prod(val.shape) // val.shape[rows]
        flat = self._add(find("aten::reshape"), node, [-1, columns])
        view = flat.meta["val"].view([val.shape[dim] for dim in order])
        return Seen(flat, view.permute([order.index(dim) for dim in range(val.dim())]))

    def _packed(self, seen: Seen) -> Node:
        """A node that is laid out as the model sees the value, without dimensions of one in front."""
        if not seen.has_rows:
            return seen.node
        return self._materialized(Seen(seen.node, seen.view.squeeze(0) if seen.view.dim() > 2 else seen.view))

    def _plain(self, node: Node, *lead: int) -> Seen:
        val = node.meta["val"]
        return Seen(node, val.view(*lead, val.shape[-1]) if lead else val)

    def _add(self, target: OpOverload | Callable, *args: Any, **kwargs: Any) -> Node:
        name = None if target is operator.getitem else node_name(self.path, target)
        node = self.graph.named_call(name, target, args, kwargs)
        node.meta["path"] = self.path
        return node

    def _fail(self, why: str) -> None:
        raise UserError(self.path or "the model", f"cannot be captured: {self.op} {why}")


RULES = {
    "aten::embedding": Flattener._embedding,
    "aten::linear": Flattener._linear,
    "aten::layer_norm": Flattener._layer_norm,
    "aten::index": Flattener._index,
    "aten::slice": Flattener._slice,
    "aten::split_with_sizes": Flattener._split_with_sizes,
    "aten::split": Flattener._split,
    "aten::chunk": Flattener._chunk,
    "aten::cat": Flattener._cat,
}


def module_path(node: Node) -> str:
    """The module a node of an exported program comes from, without the wrapper around the model."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    return stack[-1][0].partition(".")[2]


def _meta(target: OpOverload, args: tuple, kwargs: dict) -> Tensor:
    args, kwargs = _map((args, kwargs), lambda seen: seen.view)
    return target(*args, **kwargs)


def _seen(args: Any) -> list[Seen]:
    if isinstance(args, Seen):
        return [args]
    return [seen for a in args for seen in _seen(a)] if isinstance(args, (list, tuple)) else []


def _map(argument: Any, change: Callable) -> Any:
    if isinstance(argument, Seen):
        return change(argument)
    if isinstance(argument, dict):
        return {name: _map(a, change) for name, a in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_map(a, change) for a in argument)
    return argument


def _free_extent(argument: Any) -> Any:
    """Extents known only at run time become -1 in a shape."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(_free_extent(a) for a in argument)
    is_rows = isinstance(argument, int) and argument and any(argument % EXTENTS[name] == 0 for name in ("T", "R"))
    return -1 if is_rows else argument


def _shows_columns(seen: Seen) -> bool:
    """Whether the last dimension the model sees is all of the node's columns."""
    base = seen.node.meta["val"]
    return base.dim() == 2 and seen.view.shape[-1] == base.shape[-1]


def _alike(seen: Seen, first: Seen) -> bool:
    if seen.view.dim() == 0:
        return True
    if not seen.has_rows:
        return seen.view.dim() == 1 and _shows_columns(first) and seen.view.shape == first.view.shape[-1:]
    return seen.view.shape == first.view.shape and _strides(seen.view) == _strides(first.view)


def _strides(view: Tensor) -> list[int]:
    return [stride for extent, stride in zip(view.shape, view.stride()) if extent != 1]
