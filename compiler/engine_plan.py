"""A planned graph, laid out, with its files named -> the plan as engine.json has it."""

from __future__ import annotations

import math
from dataclasses import asdict

from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.layout import columns_of, lay_out
from slipway.compiler.ops import op_name
from slipway.compiler.plan import PlannedGraph, PlannedStep, weight_id
from slipway.compiler.values import View, resolve, rows_of
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE
from slipway.plugins.plugin import Kernel, Launch
from slipway.runtime import manifest


def make_plan(planned: PlannedGraph, limits: manifest.Limits, num_blocks: int, library: str, weights: dict[tuple, manifest.WeightRef],
              segments: dict[int, str]) -> manifest.Plan:
    """weights: by weight_id. segments: file of each segment step, by step number."""
    layout, weight_numbers = lay_out(planned, limits), {key: i for i, key in enumerate(weights)}

    def step(number: int, planned_step: PlannedStep) -> manifest.Step:
        kernel = planned_step.kernel
        return manifest.Step(
            name=planned_step.name,
            op=op_name(planned_step.nodes[0]) if kernel else "segment",
            rows=rows_of(planned_step.outputs[0]),
            inputs=tuple(map(layout.operand, planned_step.inputs)),
            outputs=tuple(layout.operand(View(value)) for value in planned_step.outputs),
            weights=tuple(weight_numbers[weight_id(w)] for w in kernel.weights) if kernel else (),
            symbol=kernel.symbol if kernel else None,
            segment=segments.get(number),
            batch_inputs=tuple(planned_step.batch_inputs),
            kv_layer=kernel.kv_layer if kernel else None,
            cost=asdict(kernel.cost) if kernel else {},
        )

    logits, *drawn = map(resolve, planned.graph.output_nodes())
    kernels, needs = planned.kernels(), _needs(planned, weights, limits)
    return manifest.Plan(
        arena_bytes=layout.arena_bytes,
        shared_scratch_bytes=max(n.shared_scratch.at(limits.max_batch_tokens, limits.max_logit_rows) for n in needs.values()),
        local_scratch_bytes=max(k.local_scratch for k in kernels),
        vocab_size=columns_of(logits.value),
        logits=layout.operand(logits),
        library=library,
        buffers=layout.buffers,
        weights=tuple(weights.values()),
        kernels=needs,
        steps=tuple(step(i, s) for i, s in enumerate(planned.steps)),
        kv=_kv_cache(kernels, num_blocks),
        drawn=layout.operand(drawn[0]) if drawn else None,
    )


def _needs(planned: PlannedGraph, weights: dict[tuple, manifest.WeightRef], limits: manifest.Limits) -> dict[str, manifest.Needs]:
    """What each kernel takes for granted of the steps that call it, by symbol. Launches for more rows than steps have are left out."""
    needs: dict[str, manifest.Needs] = {}
    most_rows = max(limits.max_batch_tokens, limits.max_logit_rows)
    for step in planned.steps:
        if (kernel := step.kernel) is None:
            continue
        found = manifest.Needs(
            inputs=tuple(math.prod(n.meta["val"].shape[1:]) * planned.storage[v.value].itemsize for n, v in zip(kernel.inputs, step.inputs)),
            outputs=tuple(columns_of(value) * planned.storage[value].itemsize for value in step.outputs),
            weights=tuple(weights[weight_id(w)].bytes for w in kernel.weights),
            gathers=any(rows_of(view.value) != rows_of(step.outputs[0]) for view in step.inputs),
            shared_scratch=manifest.Size(kernel.shared_scratch, kernel.shared_scratch_per_row, kernel.shared_scratch_per_row),
            local_scratch_bytes=kernel.local_scratch,
            token_ids=kernel.token_ids,
            positions=kernel.positions,
            kv_block_size=BLOCK_SIZE if kernel.kv_layer is not None else 0,
            kv_block_bytes=kernel.kv_block_bytes,
            image=f"{kernel.symbol}.cubin" if kernel.launches else None,
            launches=tuple(_launch(launch) for launch in kernel.launches if launch.min_rows <= most_rows),
            counters=kernel.counters,
        )
        if needs.setdefault(kernel.symbol, found) != found:
            raise InternalError(f"two steps call {kernel.symbol} with different needs")
    return needs


def _launch(launch: Launch) -> manifest.Launch:
    grid = tuple(manifest.Extent(**asdict(extent)) for extent in launch.grid)
    matmul = None
    if launch.matmul:
        rows = {name: value and manifest.ScratchRows(**value) for name, value in asdict(launch.matmul).items() if name in ("source", "destination")}
        matmul = manifest.Matmul(**{**asdict(launch.matmul), **rows})
    return manifest.Launch(**{**asdict(launch), "grid": grid, "matmul": matmul})


def _kv_cache(kernels: list[Kernel], num_blocks: int) -> manifest.KvCache:
    attention = [k for k in kernels if k.kv_layer is not None]
    sizes = {k.kv_block_bytes for k in attention}
    if len(sizes) != 1:
        raise UserError("kv cache", f"layers with blocks of {sorted(sizes)} bytes", "one block size for all layers")
    return manifest.KvCache(len(attention), BLOCK_SIZE, sizes.pop(), num_blocks)
