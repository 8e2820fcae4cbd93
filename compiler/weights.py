"""Packs every weight of a plan into the bytes its kernel streams, one file each, named by content."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import Node

from slipway.compiler.cache import StageCache, digest, file_digest
from slipway.compiler.graph import Graph
from slipway.compiler.identity import Identities
from slipway.compiler.plan import PlannedGraph, weight_id
from slipway.plugins.plugin import PackedWeight


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
    """What the packed bytes depend on: the format and layout, the constant expression, the tensors it reads."""
    leaves = sorted({leaf for node in weight.nodes for leaf in leaf_names(node)})
    return {
        "layout": weight.key,
        "expression": digest("\n".join(_expression(node) for node in weight.nodes)),
        "tensors": digest("".join(identities.tensor(name, graph) for name in leaves)),
    }


def leaf_names(node: Node) -> set[str]:
    """Names of the weights a constant node is computed from."""
    if node.op == "get_attr":
        return {node.target}
    return set().union(*(leaf_names(n) for n in node.all_input_nodes))


def _expression(node: Node) -> str:
    if node.op == "get_attr":
        return node.target
    return f"{node.target}({torch.fx.node.map_arg(node.args, _expression)}, {torch.fx.node.map_arg(node.kwargs, _expression)})"


def _weight_name(weight: PackedWeight) -> str:
    return min(leaf_names(weight.nodes[0]))


def _pack(graph: Graph, weight: PackedWeight, tensors: Mapping[str, torch.Tensor], identities: Identities,
          cache: StageCache) -> PackedFile:
    name, parts = _weight_name(weight), weight_parts(graph, weight, identities)

    def make(folder: pathlib.Path) -> None:
        folder.mkdir()
        values = weight.pack(*(graph.evaluate(node, tensors) for node in weight.nodes))
        _write(values, folder / "weight.bin")
        (folder / "digest").write_text(digest(values.data))

    entry = cache.fetch("weights", f"{name} {weight.key}", parts, make)
    if file_digest(entry / "weight.bin") != (entry / "digest").read_text():
        cache.forget("weights", parts)
        entry = cache.fetch("weights", f"{name} {weight.key}", parts, make)
    path = entry / "weight.bin"
    _leave_page_cache(path)
    return PackedFile(name, path, (entry / "digest").read_text(), path.stat().st_size)


def _write(values: np.ndarray, path: pathlib.Path) -> None:
    """Read-only, and on the disk: only then can the page cache let go of it."""
    with open(path, "wb") as file:
        file.write(values.data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o444)


def _leave_page_cache(path: pathlib.Path) -> None:
    """Pages that came by writing or reading are small; the runtime's mapping brings them back as huge ones."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
