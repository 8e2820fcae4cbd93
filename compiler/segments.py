"""Writes the nodes that no plugin takes as ONNX files, which ONNX Runtime executes between the plugins' steps."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch.fx import Node

from slipway.compiler.cache import StageCache, digest
from slipway.compiler.identity import Identities
from slipway.compiler.plan import PlannedGraph, PlannedStep
from slipway.compiler.values import ROW_COUNTS, Value, View, resolve
from slipway.compiler.weights import leaf_names
from slipway.compiler.version import source_digest
from slipway.plugins import registry

EXAMPLE_ROWS = {"tokens": 3, "logit_rows": 2}  # any: they only have to differ


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
    builder = _SegmentBuilder(planned, step, tensors)
    module = builder.build()
    examples = _examples(module)
    shapes = [(tuple(t.shape), t.dtype) for t in (*module.buffers(), *examples)]
    parts = {
        "code": digest(module.code + str(shapes)),
        "tensors": digest("".join(identities.tensor(name, planned.graph) for name in sorted(builder.leaves))),
        "slipway": source_digest("compiler/segments.py", "plugins"),
        "exporter": torch.__version__,
    }
    return cache.fetch("segments", step.name, parts, lambda out: _export(module, examples, out))


def _examples(module: torch.fx.GraphModule) -> tuple[torch.Tensor, ...]:
    fakes = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    return tuple(torch.zeros(EXAMPLE_ROWS[ROW_COUNTS[val.shape[0]]], *val.shape[1:], dtype=val.dtype) for val in fakes)


def _export(module: torch.fx.GraphModule, examples: tuple[torch.Tensor, ...], out: pathlib.Path) -> None:
    rows = torch.export.Dim.DYNAMIC
    with _quiet_exporter():
        program = torch.onnx.export(module, examples, dynamo=True, verbose=False, opset_version=23,
                                    dynamic_shapes=({0: rows},) * len(examples) if examples else None)
    program.save(str(out), external_data=False)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """It warns about its own deprecations and about libraries that are not there, and prints what it does."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


class _SegmentBuilder:
    """Copies a segment's nodes into a module of their own; constants become its buffers."""

    def __init__(self, planned: PlannedGraph, step: PlannedStep, tensors: Mapping[str, torch.Tensor]):
        self.planned, self.step, self.tensors = planned, step, tensors
        self.root, self.graph = torch.nn.Module(), torch.fx.Graph()
        self.copies: dict[Node, Node] = {}
        self.inputs: dict[Value, Node] = {}
        self.leaves: set[str] = set()

    def build(self) -> torch.fx.GraphModule:
        for i, view in enumerate(self.step.inputs):
            self.inputs[view.value] = self._input(f"x{i}", view.value.fake)
        for name in self.step.batch_inputs:
            source = self.planned.graph.placeholder(name)
            self.copies[source] = self._input(name, source.meta["val"])
        for node in self.step.nodes:
            self._copy(node)
        self.graph.output(tuple(self._value(value) for value in self.step.outputs))
        return torch.fx.GraphModule(self.root, self.graph)

    def _input(self, name: str, val: torch.Tensor) -> Node:
        placeholder = self.graph.placeholder(name)
        placeholder.meta["val"] = val
        return placeholder

    def _value(self, value: Value) -> Node:
        copy = self.copies[value.node]
        many = isinstance(value.node.meta["val"], (tuple, list))
        return self.graph.call_function(_getitem, (copy, value.index)) if many else copy

    def _copy(self, node: Node) -> Node:
        if node in self.copies:
            return self.copies[node]
        if self.planned.graph.is_constant(node):
            self.copies[node] = self._constant(node)
        elif (value := resolve(node).value) in self.inputs and value.fake.shape == node.meta["val"].shape:
            self.copies[node] = self.inputs[value]
        else:
            self.copies[node] = self._call(node)
        return self.copies[node]

    def _constant(self, node: Node) -> Node:
        name = f"c{len(list(self.root.buffers()))}"
        self.leaves |= leaf_names(node)
        value = self.planned.graph.evaluate(node, self.tensors)
        self.root.register_buffer(name, (value.float() if value.is_floating_point() else value).contiguous())
        return self.graph.get_attr(name)

    def _call(self, node: Node) -> Node:
        args = torch.fx.node.map_arg(node.args, self._copy)
        kwargs = torch.fx.node.map_arg(node.kwargs, self._copy)
        return self.graph.call_function(registry.meaning(node), args, kwargs)


def _getitem(values: tuple, index: int) -> torch.Tensor:
    return values[index]
