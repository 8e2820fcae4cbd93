"""Runs the passes: one literal list in phases; each is timed, its result verified, its changes shown under SLIPWAY_DEBUG."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time
from typing import Protocol

from slipway.compiler import env, graph_json
from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.graph import Graph
from slipway.passes.draw_tokens import DrawTokens
from slipway.passes.drop_dead_nodes import DropDeadNodes
from slipway.passes.fold_constants import FOLD_CONSTANTS
from slipway.passes.fuse_add_rms_norm import FuseAddRmsNorm
from slipway.passes.fuse_gated_activation import FUSE_GATED_ACTIVATION
from slipway.passes.fuse_gated_linear import FUSE_GATED_LINEAR
from slipway.passes.fuse_linear_residual import FuseLinearResidual
from slipway.passes.fuse_partial_rotary import FusePartialRotary
from slipway.passes.fuse_qk_norm import FuseQkNorm
from slipway.passes.fuse_rotary import FuseRotary
from slipway.passes.gather_logit_rows import GatherLogitRows
from slipway.passes.merge_qkv_linears import MergeQkvLinears
from slipway.passes.order_columns import OrderColumns
from slipway.passes.rewrite import Report


class Pass(Protocol):
    """Changes a graph in place, and says how often and where not."""

    def apply(self, graph: Graph) -> Report: ...


PASSES: tuple[Pass, ...] = (
    # simplify
    DropDeadNodes(),
    OrderColumns(),
    *FOLD_CONSTANTS,
    GatherLogitRows(),
    # attention
    FusePartialRotary(),
    FuseRotary(),
    FuseQkNorm(),
    # linears
    *FUSE_GATED_LINEAR,
    MergeQkvLinears(),
    *FUSE_GATED_ACTIVATION,
    # the residual stream
    FuseLinearResidual(),
    FuseAddRmsNorm(),
    DropDeadNodes(),
    # tokens
    DrawTokens(),
)
ON_GPUS_ALONE = (FuseLinearResidual, DrawTokens)


def passes_for(gpu: bool) -> tuple[Pass, ...]:
    return PASSES if gpu else tuple(each for each in PASSES if not isinstance(each, ON_GPUS_ALONE))


def run_passes(graph: Graph, passes: tuple[Pass, ...] = passes_for(gpu=False)) -> Graph:
    """A new graph that means the same. Raises InternalError that names a repro file when a pass breaks its graph."""
    for number, each in enumerate(passes):
        graph = _run(graph, each, passes[number:])
    return graph.copy(renumber=True)


def _run(graph: Graph, each: Pass, left: tuple[Pass, ...]) -> Graph:
    after, start = graph.copy(), time.perf_counter()
    try:
        report = each.apply(after)
        after.verify()
    except UserError:
        raise
    except Exception as error:
        path = _write_repro(graph, left, error)
        raise InternalError(f"pass {name_of(each)}: {error}\nrepro: {path}") from error
    _log(graph, after, each, report, time.perf_counter() - start)
    return after


def name_of(each: Pass) -> str:
    """The class, and what tells its instances apart."""
    parameters = ", ".join(map(str, vars(each).values()))
    return type(each).__name__ + (f"({parameters})" if parameters else "")


def _log(before: Graph, after: Graph, each: Pass, report: Report, seconds: float) -> None:
    """SLIPWAY_DEBUG=1: times; 2: what changed; 3: what declined and why."""
    level = env.debug()
    if level >= 1:
        print(f"pass {name_of(each)}: {report.fired} in {1000 * seconds:.1f} ms", file=sys.stderr)
    if level >= 2 and (changes := before.diff(after)):
        print(changes, file=sys.stderr)
    if level >= 3:
        for node, reason in report.declined.items():
            print(f"  not %{node}: {reason}", file=sys.stderr)


def _write_repro(graph: Graph, left: tuple[Pass, ...], error: Exception) -> pathlib.Path:
    """The graph before the pass that failed, the passes left and the reason; `replay` reads it."""
    reason, names = f"{type(error).__name__}: {error}", [name_of(each) for each in left]
    repro = {"reason": reason, "passes": names, "graph": graph_json.dumps(graph)}
    with tempfile.NamedTemporaryFile("w", prefix="slipway-repro-", suffix=".json", delete=False) as file:
        json.dump(repro, file)
    return pathlib.Path(file.name)


def replay(path: pathlib.Path | str) -> Graph:
    """Runs the passes of a repro file on its graph."""
    repro = json.loads(pathlib.Path(path).read_text())
    known = {name_of(each): each for each in passes_for(gpu=True)}
    return run_passes(graph_json.loads(repro["graph"]), tuple(known[name] for name in repro["passes"]))
