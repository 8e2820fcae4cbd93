"""Packs every weight of a plan into the bytes its kernel streams, one file each, named by content."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.fx import Node

from slipway.compiler.cache import StageCache, digest, digest_of
from slipway.compiler.disk import leave_page_cache
from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.graph import Graph
from slipway.compiler.identity import Identities
from slipway.compiler.plan import PlannedGraph, weight_id
from slipway.compiler.version import source_digest
from slipway.plugins.plugin import PackedWeight
from slipway.quantization.stored import StoredInt4


@dataclass(frozen=True)
class PackedFile:
    """path: in the cache, read-only. digest: xxh3_128 of its bytes."""

    name: str
    path: pathlib.Path
    digest: str
    bytes: int


def pack_weights(planned: PlannedGraph, tensors: Mapping[str, torch.Tensor], identities: Identities, cache: StageCache,
                 jobs: int, done: Callable[[int], None]) -> dict[tuple, PackedFile]:
    """Every weight of the plan, by weight_id. done(1): a weight is there."""

    def pack(weight: PackedWeight) -> PackedFile:
        packed = _pack(planned.graph, weight, tensors, identities, cache)
        done(1)
        return packed

    weights = planned.weights()
    with ThreadPoolExecutor(jobs) as pool:
        return {weight_id(w): packed for w, packed in zip(weights, pool.map(pack, weights))}


def weight_parts(graph: Graph, weight: PackedWeight, identities: Identities) -> dict[str, str]:
    """What the packed bytes depend on: the format and layout, the code that packs, the constant expression, the tensors it reads."""
    leaves = sorted({leaf for node in weight.nodes for leaf in leaf_names(node)})
    return {
        "layout": weight.key,
        "slipway": source_digest("plugins", "quantization", "compiler/checkpoint.py", "compiler/int4_linears.py"),
        "expression": digest("\n".join(_expression(node) for node in weight.nodes)),
        "tensors": digest("".join(identities.tensor(name, graph) for name in leaves)),
    }


def leaf_names(node: Node) -> set[str]:
    """Names of the weights a constant node is computed from."""
    if node.op == "get_attr":
        return {node.target}
    return set().union(*(leaf_names(n) for n in node.all_input_nodes))


def has_codes(graph: Graph, node: Node) -> bool:
    """Whether a constant node is computed from a weight that the checkpoint stores as codes."""
    return any(graph.weights[name].codes for name in leaf_names(node) if name in graph.weights)


def _expression(node: Node) -> str:
    if node.op == "get_attr":
        return node.target
    return f"{node.target}({torch.fx.node.map_arg(node.args, _expression)}, {torch.fx.node.map_arg(node.kwargs, _expression)})"


def _weight_name(weight: PackedWeight) -> str:
    return min(leaf_names(weight.nodes[0]))


def _pack(graph: Graph, weight: PackedWeight, tensors: Mapping[str, torch.Tensor], identities: Identities,
          cache: StageCache) -> PackedFile:
    name, parts = _weight_name(weight), weight_parts(graph, weight, identities)

    def make(out: pathlib.Path) -> None:
        values = [graph.evaluate(node, tensors) for node in weight.nodes]
        if "int4" in weight.key and any(has_codes(graph, node) and not isinstance(value, StoredInt4) for node, value in zip(weight.nodes, values)):
            raise InternalError(f"{name}: its codes were lost on the way, and would be rounded again")
        try:
            packed = weight.pack(*values)
        except UserError as error:
            raise UserError(", ".join(sorted(leaf_names(weight.nodes[0]))), f"{error.where}: {error.found}", error.expected, error.hint) from None
        out.write_bytes(packed.data)

    path = cache.fetch("weights", f"{name} {weight.key}", parts, make)
    leave_page_cache(path)
    return PackedFile(name, path, digest_of(path), path.stat().st_size)
