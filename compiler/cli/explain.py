"""`slipway explain`: for each step of the plan, what it moves and computes, the time that allows, the time it takes."""

from __future__ import annotations

from dataclasses import dataclass

import click

from slipway.compiler.cli.capacity import check_load
from slipway.compiler.cli.options import Loading, json_option, loading_options, refuse_emulation
from slipway.compiler.cli.steps import StepGroup, Work, group_steps
from slipway.compiler.cli.tables import print_json, table
from slipway.compiler.errors import UserError
from slipway.compiler.quantities import bytes_text, flops_text, rate_text, seconds_text, tokens_text
from slipway.runtime.capacity import Capacity

EPILOG = """
ALLOWED is the time of a step's bytes at the bandwidth of the machine's memory, or that of its operations at the rate
of its multipliers, whichever is longer; both are measured first, which takes a second. What stays in the CPU's caches
from one step to the next is read faster: a small model may reach more than 100%. Of an engine for a GPU it is what a card's
data sheet allows, and 1.3 µs a kernel: a prediction, which needs no GPU.

\b
Examples:
  slipway explain engine                          one sequence, 512 tokens in its cache, or what it holds
  slipway explain engine --batch 32 --context 256
  slipway explain engine --measure                beside the time each step took
  slipway explain engine --card h100              an engine for a GPU, on that card
"""


@dataclass(frozen=True)
class Line:
    """One group of steps. took_s: None where it was not measured."""

    group: StepGroup
    bytes_moved: int
    flops: int
    allowed_s: float
    took_s: float | None

    @property
    def cells(self) -> list[str]:
        took = [] if self.took_s is None else [seconds_text(self.took_s), f"{self.allowed_s / max(self.took_s, 1e-9):.0%}"]
        work = [bytes_text(self.bytes_moved), flops_text(self.flops), seconds_text(self.allowed_s)]
        return [self.group.name, self.group.op, str(len(self.group.steps)), *work, *took]


@click.command(epilog=EPILOG)
@loading_options
@click.option("--batch", type=click.IntRange(1), metavar="N", default=1, show_default=True, help="Sequences that decode at once.")
@click.option("--context", type=click.IntRange(1), metavar="N", help="Cached tokens of each.  [default: 512, or what the engine holds]")
@click.option("--measure", is_flag=True, help="Run the engine and show the time each step took.")
@click.option("--card", metavar="NAME", help="Of an engine for a GPU: the card to predict for.  [default: the first of its target]")
@json_option
def explain(loading: Loading, batch: int, context: int | None, measure: bool, card: str | None, as_json: bool) -> None:
    """Show where the time of one decoding step of ENGINE, an engine directory, goes."""
    from slipway.runtime.manifest import Manifest
    from slipway.runtime.step_times import tokens_to_measure

    manifest = Manifest.read(loading.path)
    if measure:
        refuse_emulation("--measure", manifest, loading)
    capacity = Capacity.of(manifest, loading.kv_tokens)

    def new_tokens(context: int) -> int:
        return tokens_to_measure(manifest.limits, batch, context) if measure else 1

    fitting = (few for few in range(512, 0, -1) if few + new_tokens(few) <= capacity.tokens_of(batch))
    work = Work(batch, context or next(fitting, 1))
    new = new_tokens(work.context)
    check_load(capacity, batch, work.context + new, f"--context and {f'{new} new tokens, to measure' if measure else 'a new token'}")
    limits = limits_of(manifest.target, card, loading.threads)
    took_s = measure_steps(loading, work) if measure else None
    lines = [line_of(group, work, limits, took_s) for group in group_steps(manifest)]
    print_json(as_dict(lines, work, limits)) if as_json else click.echo(as_text(lines, work, limits))


def limits_of(target, card: str | None, threads: int | None):
    """A Card for an engine of a GPU, else this machine's MachineLimits."""
    from slipway.compiler.cards import card_for
    from slipway.compiler.machine import measure_limits

    if target.is_gpu:
        return card_for(target.kind, card)
    if card:
        raise UserError("--card", f"{card} with an engine for {target.kind}", "an engine for a GPU", "leave it out")
    return measure_limits(threads)


def line_of(group: StepGroup, work: Work, limits, took_s: list[float] | None) -> Line:
    moved, flops = group.bytes_moved(work), group.flops(work)
    took = sum(took_s[number] for number in group.steps) if took_s else None
    return Line(group, moved, flops, allowed_s(group, work, limits), took)


def allowed_s(group: StepGroup, work: Work, limits) -> float:
    from slipway.compiler.cards import Card

    moved, flops = group.bytes_moved(work), group.flops(work)
    return limits.seconds(moved, flops, group.num_launches(work)) if isinstance(limits, Card) else limits.seconds(moved, flops)


def total_of(lines: list[Line]) -> Line:
    steps = [number for line in lines for number in line.group.steps]
    took = None if lines[0].took_s is None else sum(line.took_s or 0 for line in lines)
    group = StepGroup("all", "", steps)
    return Line(group, sum(x.bytes_moved for x in lines), sum(x.flops for x in lines), sum(x.allowed_s for x in lines), took)


def as_text(lines: list[Line], work: Work, limits) -> str:
    total = total_of(lines)
    header = ["STEP", "OP", "TIMES", "BYTES", "WORK", "ALLOWED"] + ["TOOK", "REACHED"] * (total.took_s is not None)
    rates = f"{rate_text(limits.read_bytes_per_s, 'B')} and {rate_text(limits.flops_per_s, 'FLOP')}"
    machine = f"this machine: {rates} with {limits.threads} threads" if hasattr(limits, "threads") else f"{limits.name}, by what its data sheet lets one reach: {rates}"
    parts = [
        f"A decoding step of {work.sequences} {'sequence' if work.sequences == 1 else 'sequences'} with {work.context} cached tokens each; {machine}",
        table(header, [line.cells for line in (*lines, total)], right=range(2, len(header))),
        f"{tokens_text(work.sequences / total.allowed_s)} with every byte read from memory" + reached(work, total),
    ]
    return "\n\n".join(parts + segments_text(lines))


def reached(work: Work, total: Line) -> str:
    return f"; the steps measured allow {tokens_text(work.sequences / total.took_s)}" if total.took_s else ""


def segments_text(lines: list[Line]) -> list[str]:
    names = [line.group.name for line in lines if line.group.op == "segment"]
    return [f"No kernel of ours: {', '.join(names)} run in ONNX Runtime, which is slower"] if names else []


def as_dict(lines: list[Line], work: Work, limits) -> dict:
    return {
        "work": {"sequences": work.sequences, "context": work.context},
        "limits": vars(limits),
        "steps": [
            {"name": x.group.name, "op": x.group.op, "times": len(x.group.steps), "bytes": x.bytes_moved, "flops": x.flops,
             "allowed_s": x.allowed_s, "took_s": x.took_s}
            for x in lines
        ],
    }  # fmt: skip


def measure_steps(loading: Loading, work: Work) -> list[float]:
    """Seconds each step of the plan takes, the median over a few rounds."""
    with loading.engine() as engine:
        return engine.time_steps(sequences=work.sequences, context=work.context)
