"""Rewrites: a pattern, what replaces it and when not, each written as a method in the language of compiler.ops.

    class FuseAddRmsNorm(Rewrite):
        def before(self, x, residual, weight, eps, plus_one):
            total = op.add(x, residual)
            return op.rms_norm(total, weight, eps, plus_one), total

        def after(self, x, residual, weight, eps, plus_one):
            return op.add_rms_norm(x, residual, weight, eps, plus_one)

        def unless(self, x, residual):
            if x.shape != residual.shape:
                return "the add broadcasts"

The methods' parameters are the pattern's variables: each stands for a node or for a plain argument, the same name for the
same thing. `**rest`, passed on to one op, stands for the arguments that are not written out. A node that the pattern reads
inside but does not return must have no other reader. add and mul match either way round.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.fx
from torch._ops import OpOverload
from torch.fx import Node

from slipway.compiler import ops
from slipway.compiler.graph import Graph
from slipway.compiler.ops import Value

COMMUTATIVE = ("aten::add", "aten::mul")


@dataclass
class Report:
    """What a pass did. declined: node name -> reason."""

    fired: int = 0
    declined: dict[str, str] = field(default_factory=dict)


def shared_call(graph: Graph, op_name: str, x: Node, by: Node, path: str) -> Node:
    """op(x, by): the one that is there already, else a new one of the module `path`, at the insertion point."""
    for user in x.users:
        if ops.is_op(user, op_name) and user.args[1] is by:
            return user
    node = graph.named_call(op_name.partition("::")[2], ops.find(op_name), (x, by), {})
    node.meta["path"] = path
    return node


class Rewrite:
    """See the module's docstring. `before` and `after` return one value, or as many as each other.

    belongs_to: the op of the pattern whose module new nodes belong to; None: see Site.
    """

    belongs_to: str | None = None

    def before(self, *variables: Any, **rest: Any) -> Value | tuple[Value, ...]:
        raise NotImplementedError

    def after(self, *variables: Any, **rest: Any) -> Value | tuple[Value, ...]:
        raise NotImplementedError

    def unless(self) -> str | None:
        return None

    def apply(self, graph: Graph) -> Report:
        """Rewrites every place that matches, in the order of the graph."""
        report, pattern = Report(), Pattern(self.before)
        for node in graph.fx.find_nodes(op="call_function", target=pattern.outputs[0].target):
            match = pattern.match(node) if node.users else None  # an earlier rewrite may have taken it
            reason = match and self._reason(match, graph)
            if reason:
                report.declined[node.name] = reason
            elif match:
                _replace(graph, match, self.after, self.belongs_to)
                report.fired += 1
        if report.fired:
            graph.sort()
            graph.drop_dead()
        return report

    def _reason(self, match: Match, graph: Graph) -> str | None:
        return match.conflict() or _call(self.unless, match.bound, graph)


class Pattern:
    """The graph that a `before` method describes, and the search for it."""

    def __init__(self, before: Callable):
        self.fx = torch.fx.Graph()
        names = {p.name: p.kind for p in _parameters(before)}
        self.rest = next((n for n, kind in names.items() if kind is inspect.Parameter.VAR_KEYWORD), None)
        variables = {n: Value(self.fx.placeholder(n), self) for n in names if n != self.rest}
        returned = before(**variables, **({ops.REST: None} if self.rest else {}))
        self.outputs = tuple(v.node for v in (returned if isinstance(returned, tuple) else (returned,)))

    def call(self, target: OpOverload | Callable, *args: Any, **kwargs: Any) -> Node:
        return self.fx.call_function(target, args, kwargs)

    def match(self, node: Node) -> Match | None:
        """A match whose first output is `node`."""
        match = next(self._node(self.outputs[0], node, Match({}, {}, ())), None)
        if match is None or any(o not in match.nodes for o in self.outputs):
            return None
        match.outputs = tuple(match.nodes[o] for o in self.outputs)
        inner = set(match.nodes.values())
        escapes = any(u not in inner for n in inner.difference(match.outputs) for u in n.users)
        return None if escapes else match

    def _node(self, wanted: Node, found: Any, match: Match) -> Iterator[Match]:
        """Every way in which `found` is an instance of the pattern node `wanted`, given what is bound already."""
        if wanted.op == "placeholder":
            if wanted.name not in match.bound:
                yield Match(match.nodes, match.bound | {wanted.name: found}, ())
            elif _same(match.bound[wanted.name], found):
                yield match
        elif wanted in match.nodes:
            if match.nodes[wanted] is found:
                yield match
        elif isinstance(found, Node) and found.op == "call_function" and found.target is wanted.target:
            for pairs, bound in self._argument_pairs(wanted, found, match.bound):
                yield from self._all(pairs, Match(match.nodes | {wanted: found}, bound, ()))

    def _argument_pairs(self, wanted: Node, found: Node, bound: dict[str, Any]) -> Iterator[tuple[list, dict[str, Any]]]:
        given, actual = self._arguments(wanted), ops.arguments(found)
        if ops.REST in wanted.kwargs:
            bound = bound | {self.rest: {name: value for name, value in actual.items() if name not in given}}
        yield [(given[name], actual[name]) for name in given], bound
        if ops.op_name(found) in COMMUTATIVE:
            actual |= {"self": actual["other"], "other": actual["self"]}
            yield [(given[name], actual[name]) for name in given], bound

    def _arguments(self, wanted: Node) -> dict[str, Any]:
        if ops.REST in wanted.kwargs:
            names = [a.name for a in wanted.target._schema.arguments]
            return dict(zip(names, wanted.args)) | {n: a for n, a in wanted.kwargs.items() if n != ops.REST}
        return ops.arguments(wanted)

    def _all(self, pairs: list[tuple[Any, Any]], match: Match) -> Iterator[Match]:
        if not pairs:
            yield match
            return
        (wanted, found), *others = pairs
        for extended in self._argument(wanted, found, match):
            yield from self._all(others, extended)

    def _argument(self, wanted: Any, found: Any, match: Match) -> Iterator[Match]:
        if isinstance(wanted, Node):
            yield from self._node(wanted, found, match)
        elif isinstance(wanted, (list, tuple)) and isinstance(found, (list, tuple)) and len(wanted) == len(found):
            yield from self._all(list(zip(wanted, found)), match)
        elif _same(wanted, found):
            yield match


@dataclass
class Match:
    """nodes: pattern node -> graph node. bound: variable -> node or argument. outputs: as `before` returns them."""

    nodes: dict[Node, Node]
    bound: dict[str, Any]
    outputs: tuple[Node, ...]

    def inputs(self) -> list[Node]:
        values = [v for value in self.bound.values() for v in (value.values() if isinstance(value, Mapping) else [value])]
        return [value for value in values if isinstance(value, Node)]

    def conflict(self) -> str | None:
        """The reason why the match cannot become one node: an input that is computed from an output."""
        inner = set(self.nodes.values())
        first = min(inner)
        reached, todo = set(), self.inputs()
        while todo:
            node = todo.pop()
            if node in inner:
                return f"%{node.name} is computed from another result"
            if node not in reached and first < node:
                reached.add(node)
                todo.extend(node.all_input_nodes)
        return None


@dataclass(frozen=True)
class Site:
    """Where replacements are built.

    A new node takes the metadata of a replaced node of its op; it belongs to the module `path`, or else to that node's, or
    else to the first one's.
    """

    graph: Graph
    replaced: tuple[Node, ...]
    path: str | None = None

    def call(self, target: OpOverload | Callable, *args: Any, **kwargs: Any) -> Node:
        like = next((node for node in self.replaced if node.target is target), self.replaced[0])
        path = self.path or like.meta.get("path", "")
        name = None if target is operator.getitem else ops.node_name(path, target)
        node = self.graph.named_call(name, target, args, kwargs)
        if like.target is target:
            node.meta = like.meta | node.meta
        node.meta["path"] = path
        return node


def _replace(graph: Graph, match: Match, after: Callable, belongs_to: str | None) -> None:
    replaced = tuple(match.nodes.values())
    path = next((node.meta.get("path") for node in replaced if belongs_to and ops.is_op(node, belongs_to)), None)
    with graph.fx.inserting_before(match.outputs[0]):
        built = _call(after, match.bound, Site(graph, replaced, path))
    for old, new in zip(match.outputs, built if isinstance(built, tuple) else (built,), strict=True):
        old.replace_all_uses_with(new.node)
    for node in sorted(match.nodes.values(), reverse=True):
        if not node.users:
            graph.fx.erase_node(node)


def _call(method: Callable, bound: dict[str, Any], builder: ops.Builder) -> Any:
    """Calls a method with what it asks for by name, nodes as values to build with; a **rest gets the rest as it was matched."""
    known, wanted = dict(bound), _parameters(method)
    for value in bound.values():
        if isinstance(value, Mapping):
            known |= value
    arguments = {p.name: known[p.name] for p in wanted if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for p in wanted:
        if p.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= bound[p.name]
    return method(**{name: _value(argument, builder) for name, argument in arguments.items()})


def _value(argument: Any, builder: ops.Builder) -> Any:
    if isinstance(argument, Node):
        return Value(argument, builder)
    if isinstance(argument, Mapping):
        return {name: _value(a, builder) for name, a in argument.items()}
    if isinstance(argument, (list, tuple)):
        return [_value(a, builder) for a in argument]
    return argument


def _parameters(method: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Node) or isinstance(b, Node):
        return a is b
    return type(a) is type(b) and a == b
