"""Graph -> the steps of an engine: kernel calls and ONNX segments on buffers placed in one arena."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, field

import torch
from torch.fx import Node

from slipway.compiler.arena import ALIGNMENT, Lifetime, align, place
from slipway.compiler.capture import BLOCK_SIZE
from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.graph import Graph
from slipway.compiler.ops import op_name
from slipway.compiler.target import Target
from slipway.plugins import registry
from slipway.plugins.plugin import Kernel, PackedWeight, Size
from slipway.runtime import manifest

F32 = torch.float32
PAGE = 4096
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}
VIEWS = ("aten::slice", "aten::split", "aten::split_with_sizes", "aten::chunk")
# inputs that carry the residual stream, kept in float32: op -> argument positions
RESIDUAL_ARGS = {"slipway::rms_norm": (0,), "slipway::add_rms_norm": (0, 1)}
RESIDUAL_OUTPUTS = {"slipway::add_rms_norm": (1,)}


@dataclass(frozen=True)
class Value:
    """One output of a node."""

    node: Node
    index: int = 0


@dataclass(frozen=True)
class View:
    """Columns of a value, from `column` on."""

    value: Value
    column: int = 0


@dataclass
class PlannedStep:
    """One step before its weights are packed: a kernel call, or the nodes of an ONNX segment."""

    nodes: list[Node]
    inputs: list[View]
    outputs: list[Value]
    kernel: Kernel | None = None

    @property
    def name(self) -> str:
        return self.nodes[0].meta.get("path") or self.nodes[0].name


@dataclass
class PlannedGraph:
    """Everything that compiling and packing need, and the buffers of the plan."""

    graph: Graph
    steps: list[PlannedStep]
    declined: dict[str, str]  # node name -> why no plugin takes it
    storage: dict[Value, torch.dtype] = field(default_factory=dict)

    def kernels(self) -> list[Kernel]:
        return [step.kernel for step in self.steps if step.kernel]

    def weights(self) -> list[PackedWeight]:
        """Each packed weight once, in the order the plan first reads it."""
        return list({weight_id(w): w for kernel in self.kernels() for w in kernel.weights}.values())


def weight_id(weight: PackedWeight) -> tuple:
    return (weight.key, *(node.name for node in weight.nodes))


def plan_graph(graph: Graph, target: Target) -> PlannedGraph:
    """Chooses a plugin or a segment for every node, storage types for every value, and the steps' order."""
    declined = {n.name: why for n in _computed(graph) if (why := registry.why_not(n, target))}
    storage = _storage_types(graph, declined)
    for value, dtype in storage.items():
        _annotate(value, dtype)
    steps: list[PlannedStep] = []
    for node in _schedule(_computed(graph), declined):
        if node.name in declined:
            if not steps or steps[-1].kernel:
                steps.append(PlannedStep([], [], []))
            steps[-1].nodes.append(node)
        else:
            steps.append(_kernel_step(node, target))
    for step in steps:
        if not step.kernel:
            _close_segment(step)
    return PlannedGraph(graph, steps, declined, storage)


def is_view(node: Node) -> bool:
    """Whether the node only renames columns, or outputs, of another."""
    if node.target is operator.getitem:
        return True
    if op_name(node) not in VIEWS or node.args[0].meta["val"].ndim != 2:
        return False
    place = 1 if op_name(node) == "aten::slice" else 2
    dim, step = node.args[place] if len(node.args) > place else 0, node.args[4] if len(node.args) > 4 else 1
    return dim in (1, -1) and step == 1


def _computed(graph: Graph) -> list[Node]:
    """Nodes that need a step: neither constants nor views of what a step has made."""
    return [n for n in graph.nodes if n.op == "call_function" and not graph.is_constant(n) and not is_view(n)]


def resolve(node: Node, column: int = 0) -> View:
    """The value behind a chain of views, and the column where the view begins."""
    if node.target is operator.getitem:
        source, index = node.args
        if not is_view(source):
            return View(Value(source, index), column)
        return resolve(source.args[0], column + sum(_split_sizes(source)[:index]))
    if is_view(node):
        return resolve(node.args[0], column + (node.args[2] or 0))
    return View(Value(node), column)


def _schedule(nodes: list[Node], declined: dict[str, str]) -> list[Node]:
    """Kernel calls as early as they can go, so that what is left between them makes few, long segments."""
    order: dict[Node, None] = {}
    waiting, in_segment = set(nodes), False
    while waiting:
        ready = [n for n in nodes if n in waiting and (n.name in declined) == in_segment and not (_sources(n) & waiting)]
        for node in ready:
            order[node] = None
        waiting -= set(ready)
        in_segment ^= not ready
    return list(order)


def _sources(node: Node) -> set[Node]:
    """Nodes that compute what the node reads, behind any views."""
    return {resolve(n).value.node for n in node.all_input_nodes if n.op == "call_function"}


def _split_sizes(node: Node) -> list[int]:
    return [value.shape[-1] for value in node.meta["val"]]


def _storage_types(graph: Graph, declined: dict[str, str]) -> dict[Value, torch.dtype]:
    """float32 for the residual stream, the logits and all that a segment touches; bfloat16 for the rest."""
    storage: dict[Value, torch.dtype] = {}
    wide: set[Value] = {resolve(n).value for n in graph.output_nodes()}
    for node in reversed(_computed(graph)):
        op, outputs = op_name(node), _outputs(node)
        for value in outputs:
            is_wide = value in wide or node.name in declined or value.index in RESIDUAL_OUTPUTS.get(op, ())
            storage[value] = F32 if is_wide else torch.bfloat16
        for position, arg in enumerate(node.args):
            for source in [arg] if isinstance(arg, Node) else arg if isinstance(arg, (list, tuple)) else []:
                if not isinstance(source, Node) or source.op != "call_function" or graph.is_constant(source):
                    continue
                passes_on = op == "slipway::gather_rows" and storage[outputs[0]] is F32
                if node.name in declined or position in RESIDUAL_ARGS.get(op, ()) or passes_on:
                    wide.add(resolve(source).value)
    return storage


def _outputs(node: Node) -> list[Value]:
    many = isinstance(node.meta["val"], (tuple, list))
    return [Value(node, i) for i in range(len(node.meta["val"]) if many else 1)]


def _annotate(value: Value, dtype: torch.dtype) -> None:
    """Writes the storage type where plugins look for it: node.meta["storage"], of views too."""
    node = value.node
    if isinstance(node.meta["val"], (tuple, list)):
        types = list(node.meta.get("storage") or [None] * len(node.meta["val"]))
        types[value.index] = dtype
        node.meta["storage"] = tuple(types)
    else:
        node.meta["storage"] = dtype
    for user in node.users:
        if is_view(user) and (user.target is not operator.getitem or user.args[1] == value.index):
            _annotate_views(user, dtype)


def _annotate_views(node: Node, dtype: torch.dtype) -> None:
    node.meta["storage"] = dtype
    for user in node.users:
        if is_view(user):
            _annotate_views(user, dtype)


def _kernel_step(node: Node, target: Target) -> PlannedStep:
    kernel = registry.plugin_for(node).lower(node, target)
    return PlannedStep([node], [resolve(n) for n in kernel.inputs], _outputs(node), kernel)


def _close_segment(step: PlannedStep) -> None:
    """Inputs are what the nodes read from elsewhere; outputs are what others read of them."""
    inside = set(step.nodes)
    reads = [resolve(n) for node in step.nodes for n in node.all_input_nodes if _is_activation(n)]
    step.inputs = list(dict.fromkeys(View(v.value) for v in reads if v.value.node not in inside))
    step.outputs = [value for node in step.nodes for value in _outputs(node) if _used_outside(value, inside)]


def _is_activation(node: Node) -> bool:
    return node.op == "call_function" and not node.meta.get("constant", False)


def _used_outside(value: Value, inside: set[Node]) -> bool:
    return any(user not in inside for user in _readers(value.node, value.index))


def _readers(node: Node, index: int = 0) -> list[Node]:
    """Nodes that read the value, through any views."""
    found: list[Node] = []
    for user in node.users:
        if user.target is operator.getitem and not is_view(node) and user.args[1] != index:
            continue
        found += _readers(user) if is_view(user) else [user]
    return found


def lay_out(planned: PlannedGraph, limits: manifest.Limits) -> tuple[list[manifest.Buffer], dict[Value, int], int]:
    """Buffers with offsets at the limits, the buffer number of each value, and the arena's size in bytes."""
    values = [value for step in planned.steps for value in step.outputs]
    first = {value: i for i, step in enumerate(planned.steps) for value in step.outputs}
    last = {value: len(planned.steps) for value in map(lambda n: resolve(n).value, planned.graph.output_nodes())}
    for i, step in enumerate(planned.steps):
        for view in step.inputs:
            last[view.value] = max(i, last.get(view.value, 0))
    sizes = [_value_size(planned, value) for value in values]
    lifetimes = [
        Lifetime(size.at(limits.max_batch_tokens, limits.max_logit_rows), first[value], last.get(value, first[value]))
        for value, size in zip(values, sizes)
    ]
    offsets, arena_bytes = place(lifetimes)
    buffers = [
        manifest.Buffer(f"{value.node.name}.{value.index}", DTYPE_NAMES[planned.storage[value]], offset, manifest.Size(**asdict(size)))
        for value, size, offset in zip(values, sizes, offsets)
    ]
    return buffers, {value: i for i, value in enumerate(values)}, arena_bytes


def row_bytes(planned: PlannedGraph, value: Value) -> int:
    """Rows a multiple of a page apart would all fall into the same few sets of a cache: those get a line more."""
    size = align(_columns(value) * planned.storage[value].itemsize)
    return size + ALIGNMENT if size % PAGE == 0 else size


def rows_of(value: Value, graph: Graph) -> str:
    """"tokens" or "logit_rows": which count the value's rows follow."""
    shape = _fake(value).shape
    if shape[0] == graph.placeholder("logit_rows").meta["val"].shape[0]:
        return "logit_rows"
    if shape[0] == graph.placeholder("input_ids").meta["val"].shape[0]:
        return "tokens"
    raise UserError(value.node.name, f"an activation of shape {list(shape)}", "one row a token or a wanted logit row")


def _fake(value: Value) -> torch.Tensor:
    val = value.node.meta["val"]
    return val[value.index] if isinstance(val, (tuple, list)) else val


def _columns(value: Value) -> int:
    columns = 1
    for extent in _fake(value).shape[1:]:
        if not isinstance(extent, int):
            raise InternalError(f"{value.node.name}: columns of unknown extent {extent}")
        columns *= extent
    return columns


def _value_size(planned: PlannedGraph, value: Value) -> Size:
    size = row_bytes(planned, value)
    return Size(per_token=size) if rows_of(value, planned.graph) == "tokens" else Size(per_logit_row=size)


def make_plan(planned: PlannedGraph, limits: manifest.Limits, num_blocks: int, library: str, weights: dict[tuple, manifest.WeightRef],
              segments: dict[int, str]) -> manifest.Plan:
    """The plan as the runtime reads it. weights: by weight_id; segments: file of each segment step, by step number."""
    buffers, numbers, arena_bytes = lay_out(planned, limits)
    files = list(weights.values())
    weight_numbers = {key: i for i, key in enumerate(weights)}

    def operand(view: View) -> manifest.Operand:
        dtype = planned.storage[view.value]
        return manifest.Operand(numbers[view.value], view.column * dtype.itemsize, row_bytes(planned, view.value))

    def step(number: int, planned_step: PlannedStep) -> manifest.Step:
        kernel = planned_step.kernel
        return manifest.Step(
            name=planned_step.name,
            op=op_name(planned_step.nodes[0]) if kernel else "segment",
            rows=rows_of(planned_step.outputs[0], planned.graph),
            inputs=tuple(operand(view) for view in planned_step.inputs),
            outputs=tuple(operand(View(value)) for value in planned_step.outputs),
            weights=tuple(weight_numbers[weight_id(w)] for w in kernel.weights) if kernel else (),
            symbol=kernel.symbol if kernel else None,
            segment=segments.get(number),
            kv_layer=kernel.kv_layer if kernel else None,
            cost=asdict(kernel.cost) if kernel else {},
        )

    logits = resolve(planned.graph.output_nodes()[0])
    kernels = planned.kernels()
    return manifest.Plan(
        arena_bytes=arena_bytes,
        shared_scratch_bytes=max(k.shared_scratch.at(limits.max_batch_tokens, limits.max_logit_rows) for k in kernels),
        local_scratch_bytes=max(k.local_scratch for k in kernels),
        vocab_size=_columns(logits.value),
        logits=operand(logits),
        library=library,
        buffers=tuple(buffers),
        weights=tuple(files),
        kernels=_needs(planned, weights),
        steps=tuple(step(i, s) for i, s in enumerate(planned.steps)),
        kv=_kv_cache(kernels, num_blocks),
    )


def _needs(planned: PlannedGraph, weights: dict[tuple, manifest.WeightRef]) -> dict[str, manifest.Needs]:
    """What each kernel takes for granted of the steps that call it, by symbol."""

    needs: dict[str, manifest.Needs] = {}
    for step in planned.steps:
        if (kernel := step.kernel) is None:
            continue
        found = manifest.Needs(
            inputs=tuple(math.prod(n.meta["val"].shape[1:]) * planned.storage[v.value].itemsize for n, v in zip(kernel.inputs, step.inputs)),
            outputs=tuple(_columns(value) * planned.storage[value].itemsize for value in step.outputs),
            weights=tuple(weights[weight_id(w)].bytes for w in kernel.weights),
            gathers=any(rows_of(view.value, planned.graph) != rows_of(step.outputs[0], planned.graph) for view in step.inputs),
            shared_scratch=manifest.Size(**asdict(kernel.shared_scratch)),
            local_scratch_bytes=kernel.local_scratch,
            token_ids=kernel.token_ids,
            positions=kernel.positions,
            kv_block_size=BLOCK_SIZE if kernel.kv_layer is not None else 0,
            kv_block_bytes=kernel.kv_block_bytes,
        )
        if needs.setdefault(kernel.symbol, found) != found:
            raise InternalError(f"two steps call {kernel.symbol} with different needs")
    return needs


def _kv_cache(kernels: list[Kernel], num_blocks: int) -> manifest.KvCache:
    attention = [k for k in kernels if k.kv_layer is not None]
    sizes = {k.kv_block_bytes for k in attention}
    if len(sizes) != 1:
        raise UserError("kv cache", f"layers with blocks of {sorted(sizes)} bytes", "one block size for all layers")
    return manifest.KvCache(len(attention), BLOCK_SIZE, sizes.pop(), num_blocks)
