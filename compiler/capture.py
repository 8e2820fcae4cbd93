"""Checkpoint -> Graph: the Hugging Face model, built without weights on `meta`, traced by torch.export."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.errors import UserError
from slipway.compiler.flatten import Flattener, Seen
from slipway.compiler.graph import Graph, WeightInfo
from slipway.compiler.graph_text import EXTENTS
from slipway.compiler.model_hooks import ATTENTION, Batch, Hooks
from slipway.compiler.weight_names import weight_names
from slipway.plugins import registry  # noqa: F401  (registers the ops)
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE


class Limits(Protocol):
    max_sequence_length: int


def capture(checkpoint: Checkpoint, limits: Limits, progress: Callable[[str], None] = lambda what: None) -> Graph:
    """The model's graph, in float32, with logits for the rows that `logit_rows` names.

    progress: told in words what happens next. Raises UserError that names the module and the op that cannot be captured.
    """
    if not hasattr(checkpoint.config, "num_attention_heads"):
        raise UserError(f"{checkpoint.directory}/config.json", "no num_attention_heads", "a decoder whose layers have attention")
    hooks = Hooks()
    hooks.register()
    progress("building the model without weights")
    model, buffers = build_on_meta(checkpoint.config)
    with hooks.installed(model, limits.max_sequence_length):
        progress(f"tracing {checkpoint.config.num_hidden_layers} layers")
        program = _export(model, hooks, checkpoint.config)
    progress("simplifying the graph")
    graph = _to_graph(program, _Leaves(model, buffers | hooks.tables, checkpoint), checkpoint.config)
    _check_attention(graph, checkpoint)
    graph.drop_dead()
    graph.verify()
    return graph


class _RealBuffers(TorchFunctionMode):
    """Makes tensors that are written out, not sized, on the CPU: a model's buffers, never its parameters."""

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.arange, torch.linspace):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def build_on_meta(config: PreTrainedConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model without weights, all on `meta`, and the values of the buffers it computes for itself."""
    with torch.device("meta"), _RealBuffers():
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32).eval()
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.device.type == "cpu"}
    return model.to("meta"), buffers


class _Wrapper(nn.Module):
    """The model as a function of a packed batch."""

    def __init__(self, model: nn.Module, hooks: Hooks):
        super().__init__()
        self.model, self.hooks = model, hooks

    def forward(self, input_ids: Tensor, positions: Tensor, cu_seqlens: Tensor, kv_lens: Tensor, block_table: Tensor,
                logit_rows: Tensor, kv_cache: Tensor) -> Tensor:  # fmt: skip
        self.hooks.batch = Batch(positions, cu_seqlens, kv_lens, block_table, kv_cache)
        out = self.model(input_ids=input_ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=logit_rows)
        return out.logits[0]


def input_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph's placeholders, in order; all but kv_cache are int32."""
    tokens, rows, sequences, blocks, pool = (EXTENTS[name] for name in "TRSBN")
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "input_ids": (tokens,),
        "positions": (tokens,),
        "cu_seqlens": (sequences + 1,),
        "kv_lens": (sequences,),
        "block_table": (sequences, blocks),
        "logit_rows": (rows,),
        "kv_cache": (config.num_hidden_layers, pool, 2, kv_heads, BLOCK_SIZE, head_dim),
    }


def _input_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "kv_cache" else torch.int32


def _export(model: nn.Module, hooks: Hooks, config: PreTrainedConfig) -> ExportedProgram:
    shapes = input_shapes(config)
    sizes = dict(zip((*EXTENTS.values(), EXTENTS["S"] + 1), (7, 2, 3, 5, 11, 4)))  # any: they only have to differ
    examples = tuple(
        torch.empty([sizes.get(extent, extent) for extent in shape], dtype=_input_dtype(name), device="meta")
        for name, shape in shapes.items()
    )
    dynamic = tuple({d: torch.export.Dim.DYNAMIC for d, e in enumerate(shape) if e in sizes} for shape in shapes.values())
    try:
        with torch.no_grad():
            return torch.export.export(_Wrapper(model, hooks), examples, dynamic_shapes=dynamic, strict=False)
    except UserError:
        raise
    except Exception as error:  # whatever a model raises when it is traced
        raise UserError(_failing_module(model, error), f"cannot be traced: {str(error).splitlines()[0]}") from error


def _failing_module(model: nn.Module, error: Exception) -> str:
    """The innermost module of the model in whose forward the error arose."""
    paths = {id(module): f"{path} ({type(module).__name__})" for path, module in model.named_modules()}
    frames = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [paths[id(module)] for module in frames if id(module) in paths]
    return found[-1] if found else type(model).__name__


def _to_graph(program: ExportedProgram, leaves: _Leaves, config: PreTrainedConfig) -> Graph:
    graph, values, shapes = Graph(), {}, input_shapes(config)
    program.graph.eliminate_dead_code()
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs):
        if spec.kind is InputKind.USER_INPUT:
            found = graph.input(node.name, shapes[node.name], _input_dtype(node.name))
        elif node.users:
            found = leaves.attribute(graph, spec.target)
        else:
            continue
        values[node] = Seen(found, found.meta["val"])
    Flattener(graph, values).run(list(program.graph.nodes))
    leaves.check()
    return graph


class _Leaves:
    """Finds what the traced model reads: its computed constants, and the checkpoint's tensors.

    A tied parameter has several names, of which the checkpoint may store any; what it stores may have another name still.
    """

    def __init__(self, model: nn.Module, constants: dict[str, Tensor], checkpoint: Checkpoint):
        self.constants, self.checkpoint = constants, checkpoint
        self.missing: list[str] = []  # told after the graph is made, because an op that cannot be captured is the better reason
        self.state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        self.names = weight_names(model, checkpoint)

    def attribute(self, graph: Graph, target: str) -> Node:
        name = target.removeprefix("model.")
        stored = self._stored(name)
        if stored is None and name in self.constants:
            graph.constants[name] = self.constants[name]
        elif stored is None:
            self.missing.append(name)
            graph.weights[name] = WeightInfo(tuple(self.state[name].shape), self.state[name].dtype)
        else:
            graph.weights[stored] = self.checkpoint.info(stored)
        node = graph.attribute(stored or name)
        order = self.checkpoint.order_of(stored) if stored else None
        return self._in_order(graph, node, order) if order else node

    def _in_order(self, graph: Graph, weight: Node, order: str) -> Node:
        """The weight as the model has it, from one whose inputs are stored in another order."""
        graph.weights[order] = self.checkpoint.info(order)
        return graph.call(torch.ops.aten.index_select.default, weight, 1, graph.call(torch.ops.aten.argsort.default, graph.attribute(order)))

    def _stored(self, name: str) -> str | None:
        """The checkpoint's name for a weight."""
        tensor = self.state.get(name)
        stored = next((self.names.stored[n] for n, t in self.state.items() if t is tensor and n in self.names.stored), None)
        if stored and self.checkpoint.info(stored).shape != tensor.shape:
            where, found = f"{self.checkpoint.files_of(stored)[0]}: {stored}", list(self.checkpoint.info(stored).shape)
            raise UserError(where, f"shape {found}", f"{list(tensor.shape)} by config.json")
        return stored

    def check(self) -> None:
        unknown = [name for name in self.names.stored if name not in self.state and not name.endswith("rotary_emb.inv_freq")]
        if self.checkpoint.quantization and (told := [name for name in unknown if self.checkpoint[self.names.stored[name]].any()]):
            raise UserError(f"{self.checkpoint.files_of(self.names.stored[told[0]])[0]}: {self.names.stored[told[0]]}", "the model has no such weight",
                            "a quantized checkpoint of plain linears: what scales activations, say, changes the others' meaning")  # fmt: skip
        converted = [name for name in self.missing if name in self.names.converted]
        if converted:
            found = f"{converted[0]} has to be computed from {self.names.converted[converted[0]]}"
            raise UserError(str(self.checkpoint.directory), found, "weights as the model has them",
                            "load it with transformers and save it with save_pretrained(..., save_original_format=False)")  # fmt: skip
        if self.missing:
            found = f"no tensor {self.missing[0]}" + (f", nor {len(self.missing) - 1} others" if self.missing[1:] else "")
            raise UserError(str(self.checkpoint.directory), found, "every weight of config.json's model")


def _check_attention(graph: Graph, checkpoint: Checkpoint) -> None:
    found = sum(node.op == "call_function" and registry.op_name(node) == "slipway::paged_attention" for node in graph.nodes)
    layers = checkpoint.config.num_hidden_layers
    if found != layers:
        raise UserError(f"{checkpoint.directory}: {checkpoint.config.architectures}", f"{found} attention ops in {layers} layers",
                        "layers of attention through transformers' attention interface")  # fmt: skip
