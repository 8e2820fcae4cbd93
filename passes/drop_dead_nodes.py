"""Nodes and weights that the logits do not depend on  ->  nothing

First, so that no pass looks at them, and last, so that what the passes left over is not packed.
"""

from __future__ import annotations

from slipway.compiler.graph import Graph
from slipway.passes.rewrite import Report


class DropDeadNodes:
    def apply(self, graph: Graph) -> Report:
        return Report(graph.drop_dead())
