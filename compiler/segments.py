"""Writes the nodes that no plugin takes as ONNX files, which ONNX Runtime executes between the plugins' steps."""

from __future__ import annotations

import io
import contextlib
import pathlib
import warnings
from collections.abc import Mapping

import torch
from torch.fx import Node

from slipway.compiler.cache import StageCache, digest
from slipway.compiler.errors import UserError
from slipway.compiler.identity import Identities
from slipway.compiler.plan import PlannedGraph, PlannedStep, Value, View, is_view, resolve
from slipway.compiler.weights import leaf_names
from slipway.compiler.version import source_digest
from slipway.plugins import registry

EXAMPLE_ROWS = 3


def compile_segments(planned: PlannedGraph, tensors: Mapping[str, torch.Tensor], identities: Identities,
                     cache: StageCache) -> dict[int, pathlib.Path]:
    """The ONNX file of each segment step, by step number; segments that say the same share one file."""
    return {
        number: _compile(planned, step, tensors, identities, cache)
        for number, step in enumerate(planned.steps)
        if not step.kernel
    }


def _compile(planned: PlannedGraph, step: PlannedStep, tensors: Mapping[str, torch.Tensor], identities: Identities,
             cache: StageCache) -> pathlib.Path:
    module = _SegmentBuilder(planned, step, tensors).build()
    leaves = sorted({leaf for node in step.nodes for n in node.all_input_nodes if planned.graph.is_constant(n) for leaf in leaf_names(n)})
    parts = {
        "code": digest(module.code + str([tuple(b.shape) for b in module.buffers()])),
        "tensors": digest("".join(identities.tensor(name, planned.graph) for name in leaves)),
        "slipway": source_digest("compiler/segments.py", "plugins"),
        "exporter": torch.__version__,
    }
    return cache.fetch("segments", step.name, parts, lambda out: _export(module, out))


def _export(module: torch.fx.GraphModule, out: pathlib.Path) -> None:
    examples = tuple(torch.zeros(EXAMPLE_ROWS, n.meta["columns"]) for n in module.graph.nodes if n.op == "placeholder")
    rows = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program = torch.onnx.export(module, examples, dynamo=True, verbose=False, opset_version=23,
                                    dynamic_shapes=({0: rows},) * len(examples) if examples else None)
    program.save(str(out), external_data=False)


class _SegmentBuilder:
    """Copies a segment's nodes into a module of their own; constants become its buffers."""

    def __init__(self, planned: PlannedGraph, step: PlannedStep, tensors: Mapping[str, torch.Tensor]):
        self.planned, self.step, self.tensors = planned, step, tensors
        self.root, self.graph = torch.nn.Module(), torch.fx.Graph()
        self.copies: dict[Node, Node] = {}
        self.inputs: dict[Value, Node] = {}

    def build(self) -> torch.fx.GraphModule:
        for i, view in enumerate(self.step.inputs):
            placeholder = self.graph.placeholder(f"x{i}")
            placeholder.meta["columns"] = _fake(view.value).shape[-1]
            self.inputs[view.value] = placeholder
        for node in self.step.nodes:
            self._copy(node)
        self.graph.output(tuple(self._value(value) for value in self.step.outputs))
        return torch.fx.GraphModule(self.root, self.graph)

    def _value(self, value: Value) -> Node:
        copy = self.copies[value.node]
        many = isinstance(value.node.meta["val"], (tuple, list))
        return self.graph.call_function(_getitem, (copy, value.index)) if many else copy

    def _copy(self, node: Node) -> Node:
        if node in self.copies:
            return self.copies[node]
        if self.planned.graph.is_constant(node):
            self.copies[node] = self._constant(node)
        elif node.op == "placeholder":
            raise UserError(node.name, "read by an op that no plugin takes", "positions and lengths are read by attention alone")
        elif node not in self.step.nodes and (not is_view(node) or resolve(node) == View(resolve(node).value)) and resolve(node).value in self.inputs:
            self.copies[node] = self.inputs[resolve(node).value]
        else:
            self.copies[node] = self._call(node)
        return self.copies[node]

    def _constant(self, node: Node) -> Node:
        name = f"c{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, self.planned.graph.evaluate(node, self.tensors).float().contiguous())
        return self.graph.get_attr(name)

    def _call(self, node: Node) -> Node:
        args = torch.fx.node.map_arg(node.args, self._copy)
        kwargs = torch.fx.node.map_arg(node.kwargs, self._copy)
        return self.graph.call_function(registry.meaning(node), args, kwargs)


def _getitem(values: tuple, index: int) -> torch.Tensor:
    return values[index]


def _fake(value: Value) -> torch.Tensor:
    val = value.node.meta["val"]
    return val[value.index] if isinstance(val, (tuple, list)) else val
