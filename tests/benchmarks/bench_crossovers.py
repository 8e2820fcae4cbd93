"""From how many rows on cuBLASLt multiplies faster than our kernels on the GPU that is here, for the linears of Llama-3.1-8B.

    python tests/benchmarks/bench_crossovers.py --write plugins/linear/crossovers.json      on a machine with a GPU
    python tests/benchmarks/bench_crossovers.py --emulate                                   tiny shapes, by emulation: shows that it works

What is measured goes before the cost model when engines are built.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import click
import torch
from bench_gpu import TINY, Linear, Measure, Scale, target_here
from nodes import CODED_ACTIVATIONS

from slipway.compiler.target import Target
from slipway.plugins.linear.by_cublas import FACTORS, CublasLinear

LEAST_ROWS, ROWS = 17, (32, 64, 128, 256, 512, 1024)


def crossover(measure: Measure, name: str, fmt) -> tuple[str, int | None]:
    """(the linear in the table, rows from which cuBLASLt is faster, at all that are measured; None: at none)."""
    own, theirs = (Linear(measure, name, fmt, dataclasses.replace(measure.target, cublas=rows)) for rows in (0, LEAST_ROWS))
    gated, dtype = name == "gate|up", torch.bfloat16
    key = CublasLinear(own.outputs, own.inputs, fmt, gated, False, False, dtype, dtype, CODED_ACTIVATIONS.get(fmt, "bf16"), measure.target).name
    found = None
    for rows in reversed(ROWS[:2] if measure.emulate else ROWS):
        times = own.seconds(rows), theirs.seconds(rows)
        click.echo(f"{key}, {rows} rows: {times[0] * 1e6:.1f} µs ours, {times[1] * 1e6:.1f} µs cuBLASLt's")
        if times[1] >= times[0]:
            break
        found = rows
    return key, found


@click.command()
@click.option("--emulate", is_flag=True, help="Tiny shapes, by emulation.")
@click.option("--write", type=click.Path(path_type=pathlib.Path), help="A table of cross-overs: the target's part of it is written anew.")
def main(emulate: bool, write: pathlib.Path | None) -> None:
    """Measure from how many rows on linears are to be cuBLASLt's."""
    target = Target("sm100") if emulate else target_here()
    measure = Measure(target, TINY if emulate else Scale(), emulate)
    formats = [factors.weights for factors in FACTORS if factors.name in target.gpu.factors]
    names = [name for name in measure.scale.linears if name != "head"]  # whose rows are few
    found = dict(crossover(measure, name, fmt) for name, fmt in itertools.product(names, formats))
    if write:
        table = json.loads(write.read_text()) if write.exists() else {}
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(json.dumps(table | {target.kind: found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
