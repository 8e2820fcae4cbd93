"""Slipway beside vLLM on this machine, in one run, and the ratios Slipway aims at: python tests/benchmarks/bench_peers.py

Qwen3-0.6B's shape with random weights; see peers/measure.py for the work. Contestants take turns in every round, and each runs alone:
its process is started for its turn and ended after it. The first run takes 3.5 GB for vLLM's environment and 4.5 GB for models.
"""

from __future__ import annotations

import dataclasses
import signal
import statistics
import sys
from pathlib import Path

import click

from peers import contestants, measure
from peers.report import Standing, ratios, report
from slipway.compiler.cli.options import FOLDER, json_option
from slipway.compiler.cli.tables import print_json
from slipway.compiler.machine import MachineLimits
from slipway.runtime.machine import usable_cores


@click.command()
@click.option("--folder", type=FOLDER, default="build/peers", show_default=True, help="Where environments, models and logs are kept.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Turns of each contestant.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads that compute; one a core by default.")
@json_option
def main(folder: Path, rounds: int, threads: int | None, as_json: bool) -> None:
    """Measure Slipway and its peers, and print the ratios."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds: no worker stays behind
    threads = threads or usable_cores()
    field = contestants.prepare(folder, threads)
    turns: dict[str, list[measure.Figures]] = {contestant.name: [] for contestant in field}
    seen: list[MachineLimits] = []
    for number in range(rounds):
        for contestant in field:
            click.echo(f"round {number + 1} of {rounds}: {contestant.name}", err=True)
            figures, limits = measure.measure(contestant, threads, number, folder / "logs")
            click.echo(f"  {limits}\n  {figures}", err=True)
            turns[contestant.name].append(figures)
            seen.append(limits)
    standings = [Standing(c.name, c.weights, c.is_ours, measure.median(turns[c.name])) for c in field]
    limits = MachineLimits(threads, *(statistics.median(getattr(one, rate) for one in seen) for rate in ("read_bytes_per_s", "flops_per_s")))
    if as_json:
        print_json({"limits": dataclasses.asdict(limits), "standings": [dataclasses.asdict(s) for s in standings],
                    "ratios": [dataclasses.asdict(r) | {"reached": r.reached} for r in ratios(standings)]})  # fmt: skip
    else:
        click.echo(report(standings, limits, rounds))


if __name__ == "__main__":
    main()
