"""Graph -> the steps of an engine in order: kernel calls, and segments of the nodes that no plugin takes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import torch
from torch.fx import Node

from slipway.compiler.graph import Graph
from slipway.compiler.storage import choose_storage
from slipway.compiler.target import Target
from slipway.compiler.values import Value, View, computed_nodes, outputs_of, readers, reads, resolve, rows_of, values_read
from slipway.plugins import registry
from slipway.plugins.plugin import Kernel, PackedWeight


@dataclass
class PlannedStep:
    """One step before its weights are packed: a kernel call, or the nodes of an ONNX segment.

    batch_inputs: placeholders that a segment reads. Its outputs, and so its rows, follow one count.
    """

    nodes: list[Node]
    inputs: list[View]
    outputs: list[Value]
    kernel: Kernel | None = None
    batch_inputs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.nodes[0].meta.get("path") or self.nodes[0].name


@dataclass
class PlannedGraph:
    """Everything that compiling and packing need. declined: node name -> why no plugin takes it."""

    graph: Graph
    steps: list[PlannedStep]
    declined: dict[str, str]
    storage: dict[Value, torch.dtype]

    def kernels(self) -> list[Kernel]:
        return [step.kernel for step in self.steps if step.kernel]

    def weights(self) -> list[PackedWeight]:
        """Each packed weight once, in the order the plan first reads it."""
        return list({weight_id(w): w for kernel in self.kernels() for w in kernel.weights}.values())


def weight_id(weight: PackedWeight) -> tuple:
    return (weight.key, *(node.name for node in weight.nodes))


def plan_graph(graph: Graph, target: Target) -> PlannedGraph:
    """Chooses a plugin or a segment for every node, storage types for every value, and the steps' order."""
    nodes = computed_nodes(graph)
    declined = {n.name: why for n in nodes if (why := registry.why_not(n, target))}
    storage = choose_storage(graph, declined)
    steps = [
        _segment(run) if run[0].name in declined else _kernel_step(run[0], target)
        for run in _runs(nodes, declined)
    ]
    return PlannedGraph(graph, steps, declined, storage)


def _runs(nodes: list[Node], declined: dict[str, str]) -> list[list[Node]]:
    """The nodes of each step: one for a kernel; as many as can run together, with rows of one count, for a segment.

    Kernel calls come as early as they can, so that what is left between them makes few, long segments.
    """
    place = {node: i for i, node in enumerate(nodes)}
    sorter = TopologicalSorter({node: [value.node for value in values_read(node)] for node in nodes})
    ready: dict[str, list[int]] = {"kernel": [], "tokens": [], "logit_rows": []}  # heaps of places

    def release() -> None:
        for node in sorter.get_ready():
            heapq.heappush(ready[rows_of(outputs_of(node)[0]) if node.name in declined else "kernel"], place[node])

    sorter.prepare()
    release()
    runs: list[list[Node]] = []
    while sorter.is_active():
        for kind, queue in ready.items():
            run: list[Node] = []
            while queue:
                run.append(nodes[heapq.heappop(queue)])
                sorter.done(run[-1])
                release()
            runs += [[node] for node in run] if kind == "kernel" else [run] if run else []
    return runs


def _kernel_step(node: Node, target: Target) -> PlannedStep:
    kernel = registry.plugin_for(node).lower(node, target)
    return PlannedStep([node], [resolve(n) for n in kernel.inputs], outputs_of(node), kernel)


def _segment(nodes: list[Node]) -> PlannedStep:
    """Inputs are what the nodes read from elsewhere; outputs are what others read of them."""
    inside = set(nodes)
    inputs = dict.fromkeys(View(value) for node in nodes for value in values_read(node) if value.node not in inside)
    batch_inputs = dict.fromkeys(n.name for node in nodes for n in reads(node) if n.op == "placeholder")
    outputs = [value for node in nodes for value in outputs_of(node) if not inside.issuperset(readers(value))]
    return PlannedStep(nodes, list(inputs), outputs, batch_inputs=list(batch_inputs))
