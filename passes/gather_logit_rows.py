"""gather_rows(f(x, y), rows)  ->  f(gather_rows(x, rows), gather_rows(y, rows)), for every f that works row by row

Only the rows whose logits are wanted go through the LM head, and through all of the last layer that follows its attention:
a prompt of a thousand tokens needs one.

Before fuse_add_rms_norm and the passes that fuse or merge linears: it knows plain ops only.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.ops import arguments, is_op
from slipway.passes.rewrite import Report, shared_call

ROW_WISE = ("aten::linear", "slipway::rms_norm", "slipway::head_rms_norm", "slipway::gather_columns", "aten::layer_norm")
GATHER = "slipway::gather_rows"


class GatherLogitRows:
    def apply(self, graph: Graph) -> Report:
        report = Report()
        gathers = [node for node in graph.nodes if is_op(node, GATHER)]
        while gathers:
            gather = gathers.pop()
            reason = _unless(graph, gather) if gather.users else None
            if reason:
                report.declined[gather.name] = reason
            elif gather.users:
                gathers += _move_up(graph, gather)
                report.fired += 1
        if report.fired:
            graph.sort()  # a gather that two readers share stands where the first was found
            graph.drop_dead()
        return report


def _unless(graph: Graph, gather: Node) -> str | None:
    source = gather.args[0]
    if not is_op(source, *ROW_WISE) and not _pointwise(source):
        return f"%{source.name} is not made row by row"
    if len(source.users) > 1:
        return f"all rows of %{source.name} are read elsewhere"
    return None


def _pointwise(node: Node) -> bool:
    """Elementwise, or a range of columns."""
    if node.op != "call_function" or not isinstance(node.meta["val"], torch.Tensor):
        return False
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or is_op(node, "aten::slice") and arguments(node)["dim"] == 1


def _move_up(graph: Graph, gather: Node) -> list[Node]:
    """The gathers that took its place, and those that may now move because a reader is gone."""
    source, rows = gather.args
    moved = []
    with graph.fx.inserting_before(source):
        for value in source.all_input_nodes:
            if value.meta["val"].shape[:1] == source.meta["val"].shape[:1] and not graph.is_constant(value):
                moved.append(shared_call(graph, GATHER, value, rows, value.meta.get("path", "")))
                source.replace_input_with(value, moved[-1])
    gather.replace_all_uses_with(source)
    graph.fx.erase_node(gather)
    source.meta["val"] = source.meta["val"].new_empty(rows.meta["val"].shape[0], *source.meta["val"].shape[1:])
    return moved
