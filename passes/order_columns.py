"""linear(x, index_select(w, 1, argsort(order)), bias)  ->  linear(gather_columns(x, order), w, bias)

A weight that was quantized in another order of its inputs, GPTQ's of activations, keeps its groups together: the activations take its order.
Linears of one activation and one order share what is gathered.

Before fold_constants, which puts factors around weights, and the passes that fuse or merge linears.
"""

from __future__ import annotations

from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.ops import arguments, is_op
from slipway.passes.rewrite import Report, shared_call

GATHER = "slipway::gather_columns"


class OrderColumns:
    def apply(self, graph: Graph) -> Report:
        report = Report()
        for node in graph.nodes:
            if not is_op(node, "aten::linear"):
                continue
            found = arguments(node)
            if ordered := _ordered(found["weight"]):
                weight, order = ordered
                with graph.fx.inserting_before(node):
                    gathered = shared_call(graph, GATHER, found["input"], order, node.meta.get("path", ""))
                node.replace_input_with(found["input"], gathered)
                node.replace_input_with(found["weight"], weight)
                report.fired += 1
        if report.fired:
            graph.sort()  # what linears share stands where the first was found
            graph.drop_dead()
        return report


def _ordered(weight: Node) -> tuple[Node, Node] | None:
    """The weight whose inputs are in another order, and that order."""
    if not is_op(weight, "aten::index_select") or arguments(weight)["dim"] != 1:
        return None
    found = arguments(weight)
    return (found["self"], found["index"].args[0]) if is_op(found["index"], "aten::argsort") else None
