"""The language rewrites are written in: `op.rms_norm(x, w, eps, False)` becomes a node of whichever graph x lives in."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._ops import OpOverload
from torch.fx import Node

from slipway.compiler.errors import InternalError

ATEN = {  # short name -> overload; every other name is a slipway:: op
    "add": "aten::add.Tensor",
    "cat": "aten::cat",
    "div": "aten::div.Tensor",
    "gelu": "aten::gelu",
    "linear": "aten::linear",
    "mul": "aten::mul.Tensor",
    "permute": "aten::permute",
    "relu": "aten::relu",
    "reshape": "aten::reshape",
    "silu": "aten::silu",
    "slice": "aten::slice.Tensor",
}
GETITEM = "getitem"
REST = "rest of the arguments"


class Builder(Protocol):
    """Where `op.<name>` puts its nodes: a Graph, or the pattern of a rewrite."""

    def call(self, target: OpOverload | Callable, *args: Any, **kwargs: Any) -> Node: ...


@dataclass(frozen=True)
class Value:
    """A node and the graph that calls on it are added to."""

    node: Node
    builder: Builder

    @property
    def shape(self) -> torch.Size:
        return self.node.meta["val"].shape

    @property
    def is_constant(self) -> bool:
        return is_constant(self.node)

    def is_op(self, *names: str) -> bool:
        return is_op(self.node, *names)

    def argument(self, name: str) -> Value:
        """What the node reads as its argument `name`."""
        return Value(arguments(self.node)[name], self.builder)


def find(name: str) -> OpOverload | Callable:
    """The callable of a qualified name, "aten::add.Tensor" or "slipway::rms_norm"."""
    if name == GETITEM:
        return operator.getitem
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def qualified_name(target: OpOverload | Callable) -> str:
    """The inverse of `find`."""
    if target is operator.getitem:
        return GETITEM
    if not isinstance(target, OpOverload):
        raise InternalError(f"{target!r} is not an op")
    return target.name()


def op_name(node: Node) -> str:
    """The op of a node without its overload: "aten::add", "slipway::rms_norm", "getitem"."""
    if node.op != "call_function":
        return node.op
    return qualified_name(node.target).partition(".")[0]


def is_op(node: object, *names: str) -> bool:
    """Whether node is a call of one of `names`, given as in `op_name`."""
    return isinstance(node, Node) and op_name(node) in names


def is_constant(node: Node) -> bool:
    """Whether the node depends on weights and constants alone; kept where the node's type is."""
    return node.meta.get("constant", False)


def bind(target: OpOverload, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, in the order of the schema; what is not given has its default."""
    schema = target._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args)} | kwargs
    bound = {a.name: given.pop(a.name, a.default_value) for a in schema if a.name in given or a.has_default_value()}
    missing = [a.name for a in schema if a.name not in bound]
    if given or missing or len(args) > len(schema):
        raise InternalError(f"{target.name()}: unknown arguments {list(given)}, missing {missing}, {len(args)} positional")
    return bound


def arguments(node: Node) -> dict[str, Any]:
    """`bind` of a node's own arguments."""
    if node.target is operator.getitem:
        return {"source": node.args[0], "index": node.args[1]}
    return bind(node.target, node.args, node.kwargs)


def canonical(target: OpOverload, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The one way to write a call: positional arguments, defaults left out from the end; keywords only where they must be."""
    bound = bind(target, args, kwargs)
    positional = [a for a in target._schema.arguments if not a.kwarg_only]
    while positional and positional[-1].has_default_value() and _same(bound[positional[-1].name], positional[-1].default_value):
        positional.pop()
    keyword = {a.name: bound[a.name] for a in target._schema.arguments if a.kwarg_only and bound[a.name] != a.default_value}
    return tuple(bound[a.name] for a in positional), keyword


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default


def node_name(path: str, target: OpOverload) -> str:
    """l3_q_proj for the linear of module layers.3.self_attn.q_proj, l3_add for what is not a module of its own."""
    parts = path.split(".")
    layer = next((f"l{part}_" for part in parts if part.isdigit()), "")
    packet = target.name().partition("::")[2].partition(".")[0]
    return layer + (parts[-1] if packet in ("linear", "linear_residual") and parts[-1] and not parts[-1].isdigit() else packet)


class _Ops:
    """`op.<name>(...)`: a call of aten's or slipway's <name>; several results come as a tuple."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            target = find(ATEN.get(name, f"slipway::{name}"))
            builder = _builder((*args, *kwargs.values()))
            node = builder.call(target, *_nodes(args), **_nodes(kwargs))
            results = len(target._schema.returns)
            if results == 1:
                return Value(node, builder)
            return tuple(Value(builder.call(operator.getitem, node, i), builder) for i in range(results))

        return call


op = _Ops()


def activate(name: str, x: Value) -> Value:
    """The activation that slipway::gated_linear and gated_activation call `name`."""
    return op.gelu(x, approximate="tanh") if name == "gelu_tanh" else getattr(op, name)(x)


def _builder(args: tuple) -> Builder:
    for arg in args:
        if isinstance(arg, Value):
            return arg.builder
        if isinstance(arg, (list, tuple)) and any(isinstance(a, Value) for a in arg):
            return _builder(tuple(arg))
    raise InternalError("an op without a graph value among its arguments")


def _nodes(arg: Any) -> Any:
    if isinstance(arg, Value):
        return arg.node
    if isinstance(arg, dict):
        return {name: _nodes(a) for name, a in arg.items()}
    if isinstance(arg, (list, tuple)):
        return type(arg)(_nodes(a) for a in arg)
    return arg
