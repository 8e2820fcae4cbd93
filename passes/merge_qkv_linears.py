"""linear(x, wq), linear(x, wk), linear(x, wv)  ->  columns of linear(x, cat(wq, wk, wv))

One call streams all the weights that one activation meets; q, k and v are column ranges of its result, and views in the
plan. The merged weight is a constant subgraph, evaluated when it is packed. Any linears of one activation are merged.

After fuse_gated_linear, which wants gate and up apart; before fuse_gated_activation.
"""

from __future__ import annotations

import itertools

from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.ops import Value, arguments, is_op, op
from slipway.passes.rewrite import Report, Site
from slipway.quantization.formats import WeightFormat


class MergeQkvLinears:
    def apply(self, graph: Graph) -> Report:
        report = Report()
        for source in graph.nodes:
            linears = [user for user in source.users if is_op(user, "aten::linear") and arguments(user)["input"] is source]
            if len(linears) < 2 or graph.is_constant(source):
                continue
            reason = _unless(graph, linears)
            if reason:
                report.declined[linears[0].name] = reason
            else:
                _merge(graph, sorted(linears))
                report.fired += 1
        return report


def _unless(graph: Graph, linears: list[Node]) -> str | None:
    if not all(graph.is_constant(arguments(node)["weight"]) for node in linears):
        return "a weight is not a constant"
    if len({arguments(node)["bias"] is None for node in linears}) > 1:
        return "some have a bias and some have none"
    if any(node.meta.get("weight_format") != linears[0].meta.get("weight_format") for node in linears):
        return "their weight formats differ"
    if len({_codes(graph, arguments(node)["weight"]) for node in linears}) > 1:
        return "the checkpoint stores their weights in different formats"
    return None


def _codes(graph: Graph, weight: Node) -> WeightFormat | None:
    return graph.weights[weight.target].codes if weight.op == "get_attr" and weight.target in graph.weights else None


def _merge(graph: Graph, linears: list[Node]) -> None:
    first, site = linears[0], Site(graph, tuple(linears), _path(linears))
    x, weights, biases = ([Value(a, site) for a in column if a] for column in zip(*(_operands(node) for node in linears)))
    with graph.fx.inserting_before(first):
        merged = op.linear(x[0], op.cat(weights), op.cat(biases) if biases else None)
        ends = list(itertools.accumulate(node.meta["val"].shape[1] for node in linears))
        columns = [op.slice(merged, 1, start, end).node for start, end in zip([0, *ends], ends)]
    for old, new in zip(linears, columns):
        old.replace_all_uses_with(new)
        graph.fx.erase_node(old)


def _path(linears: list[Node]) -> str:
    """model.layers.0.self_attn.q_proj+k_proj+v_proj"""
    paths = [node.meta.get("path", "").rpartition(".") for node in linears]
    return f"{paths[0][0]}.{'+'.join(leaf for _, _, leaf in paths)}"


def _operands(linear: Node) -> tuple[Node, Node, Node | None]:
    found = arguments(linear)
    return found["input"], found["weight"], found["bias"]
