"""The plugins there are, in one literal list; importing this module registers their ops with torch."""

from __future__ import annotations

from collections.abc import Callable

from torch._library.custom_ops import _maybe_get_opdef
from torch.fx import Node

from slipway.compiler.ops import op_name
from slipway.compiler.target import Target
from slipway.plugins.draw_tokens import plugin as draw_tokens
from slipway.plugins.embedding import plugin as embedding
from slipway.plugins.gated_activation import plugin as gated_activation
from slipway.plugins.gather_columns import plugin as gather_columns
from slipway.plugins.gather_rows import plugin as gather_rows
from slipway.plugins.linear import plugin as linear
from slipway.plugins.paged_attention import plugin as paged_attention
from slipway.plugins.plugin import Plugin
from slipway.plugins.rms_norm import plugin as rms_norm

PLUGINS: tuple[Plugin, ...] = (
    embedding.PLUGIN,
    linear.PLUGIN,
    gated_activation.PLUGIN,
    rms_norm.PLUGIN,
    paged_attention.PLUGIN,
    gather_rows.PLUGIN,
    gather_columns.PLUGIN,
    draw_tokens.PLUGIN,
)
OWNERS = {op: plugin for plugin in PLUGINS for op in plugin.ops}


def plugin_for(node: Node) -> Plugin | None:
    """The plugin that owns the node's op."""
    return OWNERS.get(op_name(node))


def why_not(node: Node, target: Target) -> str | None:
    """None when a plugin runs the node on the target, else the reason why none does."""
    plugin = plugin_for(node)
    return plugin.supports(node, target) if plugin else f"no plugin owns {op_name(node)}"


def meaning(node: Node) -> Callable:
    """What the node computes, in aten ops alone: the body of a slipway:: op, an aten op itself."""
    definition = _maybe_get_opdef(node.target) if op_name(node).startswith("slipway::") else None
    return definition._init_fn if definition else node.target
