"""logits  ->  logits, draw_tokens(logits), for a target that draws

The last pass: tokens then feed the next step without a way over the host.
"""

from __future__ import annotations

from slipway.compiler.graph import Graph
from slipway.compiler.ops import find
from slipway.passes.rewrite import Report


class DrawTokens:
    def apply(self, graph: Graph) -> Report:
        (logits,) = graph.output_nodes()
        output = graph.fx.output_node()
        with graph.fx.inserting_before(output):
            tokens = graph.named_call("draw_tokens", find("slipway::draw_tokens"), (logits,), {})
        tokens.meta["path"] = "draw_tokens"
        output.args = ((logits, tokens),)
        return Report(fired=1)
