"""Graph <-> JSON text, for the stage cache and repro files: everything but the checkpoint's own tensors."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from slipway.compiler import ops
from slipway.compiler.errors import InternalError
from slipway.compiler.graph import Graph, WeightInfo
from slipway.compiler.graph_text import dtype_text
from slipway.quantization.formats import WeightFormat


def dumps(graph: Graph) -> str:
    weights = {name: _weight(info) for name, info in graph.weights.items()}
    constants = {name: _constant(tensor) for name, tensor in graph.constants.items()}
    return json.dumps({"weights": weights, "constants": constants, "nodes": [_entry(n) for n in graph.nodes]}, indent=1)


def loads(text: str) -> Graph:
    data = json.loads(text)
    weights = {name: _weight_from(*entry) for name, entry in data["weights"].items()}
    graph = Graph(weights, {name: _constant_from(entry) for name, entry in data["constants"].items()})
    nodes: dict[str, Node] = {}
    for entry in data["nodes"]:
        nodes[entry["name"]] = _add(graph, entry, nodes)
    return graph


def _weight(info: WeightInfo) -> list[Any]:
    codes = [info.codes.group_size, info.codes.zero_point] if info.codes else []
    return [list(info.shape), dtype_text(info.dtype), *codes]


def _weight_from(shape: list[int], dtype: str, group_size: int | None = None, zero_point: bool = False) -> WeightInfo:
    return WeightInfo(tuple(shape), _dtype(dtype), WeightFormat("int4", 4, group_size, zero_point) if group_size else None)


def _entry(node: Node) -> dict[str, Any]:
    entry = {"name": node.name, "op": node.op}
    if node.op == "placeholder":
        val = node.meta["val"]
        return entry | {"shape": list(val.shape), "dtype": dtype_text(val.dtype)}
    if node.op == "get_attr":
        return entry | {"target": node.target}
    if node.op == "call_function":
        entry["target"] = ops.qualified_name(node.target)
    if "path" in node.meta:
        entry["path"] = node.meta["path"]
    return entry | {"args": _argument(node.args), "kwargs": _argument(dict(node.kwargs))}


def _add(graph: Graph, entry: dict[str, Any], nodes: dict[str, Node]) -> Node:
    if entry["op"] == "placeholder":
        return graph.input(entry["name"], tuple(entry["shape"]), _dtype(entry["dtype"]))
    if entry["op"] == "get_attr":
        return graph.attribute(entry["target"])
    args, kwargs = _argument_from(entry["args"], nodes), _argument_from(entry["kwargs"], nodes)
    if entry["op"] == "output":
        return graph.fx.output(tuple(args[0]))
    node = graph.named_call(entry["name"], ops.find(entry["target"]), tuple(args), kwargs)
    if "path" in entry:
        node.meta["path"] = entry["path"]
    return node


def _argument(argument: Any) -> Any:
    """Nodes and types become one-entry objects, which no argument of an op is."""
    if isinstance(argument, Node):
        return {"node": argument.name}
    if isinstance(argument, torch.dtype):
        return {"dtype": dtype_text(argument)}
    if isinstance(argument, dict):
        return {name: _argument(a) for name, a in argument.items()}
    if isinstance(argument, (list, tuple)):
        return [_argument(a) for a in argument]
    if argument is None or isinstance(argument, (bool, int, float, str)):
        return argument
    raise InternalError(f"an argument of type {type(argument).__name__} cannot be written as JSON")


def _argument_from(data: Any, nodes: dict[str, Node]) -> Any:
    if isinstance(data, list):
        return [_argument_from(a, nodes) for a in data]
    if not isinstance(data, dict):
        return data
    match data:
        case {"node": str(name)}:
            return nodes[name]
        case {"dtype": str(name)}:
            return _dtype(name)
    return {name: _argument_from(a, nodes) for name, a in data.items()}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InternalError(f"{name!r} is not a type")
    return dtype


def _constant(tensor: Tensor) -> dict[str, Any]:
    data = base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()
    return {"shape": list(tensor.shape), "dtype": dtype_text(tensor.dtype), "data": data}


def _constant_from(entry: dict[str, Any]) -> Tensor:
    data = np.frombuffer(base64.b64decode(entry["data"]), entry["dtype"])
    return torch.from_numpy(data.reshape(entry["shape"]).copy())
