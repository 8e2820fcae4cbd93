"""Figures of all contestants  ->  a table of them, and one of the ratios that Slipway aims at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peers.measure import AT_ONCE, LONG, Figures
from slipway.compiler.machine import MachineLimits
from slipway.compiler.quantities import rate_text, seconds_text


@dataclass(frozen=True)
class Standing:
    """One contestant's figures, of all rounds."""

    name: str
    weights: str
    is_ours: bool
    figures: Figures


@dataclass(frozen=True)
class Ratio:
    """One aim. compared: what was divided by what. form: of value and aim as text."""

    what: str
    value: float
    aim: float
    compared: str
    at_most: bool = False
    form: str = "{:.3g}x"

    @property
    def reached(self) -> bool:
        return self.value <= self.aim if self.at_most else self.value >= self.aim


def ratios(standings: list[Standing]) -> list[Ratio]:
    every = [s for s in standings if s.is_ours]
    ours = {s.weights: s for s in reversed(every)}  # of several with the same weights, the first
    peers = [s for s in standings if not s.is_ours]
    bf16_peers, int4_peers = ([p for p in peers if p.weights == weights] for weights in ("bf16", "int4"))

    def beside(what: str, aim: float, us: list[Standing], them: list[Standing], figure: Callable[[Figures], float], least=False) -> Ratio:
        """The best of us over the best of them. least: the smallest figure is the best, and the ratio is to be small."""
        best = min if least else max
        a, b = (best(side, key=lambda s: figure(s.figures)) for side in (us, them))
        return Ratio(what, figure(a.figures) / figure(b.figures), aim, f"{a.name} / {b.name}", at_most=least)

    def share(weights: str, aim: float) -> Ratio:
        return Ratio(f"batch 1, {weights}: of read bandwidth", ours[weights].figures.read_share, aim, ours[weights].name, form="{:.0%}")

    def decode(count: int) -> Callable[[Figures], float]:
        return lambda figures: figures.decode[count]

    slowest = max(every, key=lambda s: s.figures.start_s)
    return [
        share("bf16", 0.8),
        share("int8", 0.8),
        share("int4", 0.6),
        beside("batch 1, 4 bits", 1.5, [ours["int4"]], int4_peers, decode(1)),
        beside("8 at once", 1.6, every, peers, decode(8)),
        beside("32 at once", 2.0, every, peers, decode(32)),
        beside("32 at once, KV in bf16", 2.0, list(ours.values()), peers, decode(32)),
        beside("32 at once, int4 no slower than bf16", 1.0, [ours["int4"]], [ours["bf16"]], decode(32)),
        beside(f"prefill of {LONG:,}, bf16", 1.2, [ours["bf16"]], bf16_peers, lambda figures: figures.prefill),
        beside(f"first token of {LONG:,}, cold, bf16", 0.8, [ours["bf16"]], bf16_peers, lambda figures: figures.cold_s, least=True),
        beside("first token, prefix shared, bf16", 0.6, [ours["bf16"]], bf16_peers, lambda figures: figures.shared_s, least=True),
        Ratio("process start to first token", slowest.figures.start_s, 1.0, slowest.name, at_most=True, form="{:.3g} s"),
    ]


def report(standings: list[Standing], limits: MachineLimits, rounds: int) -> str:
    measured = f"{rate_text(limits.read_bytes_per_s, 'B')} read, {rate_text(limits.flops_per_s, 'FLOP')}"
    turns = "one round" if rounds == 1 else f"medians of {rounds} rounds"
    header = ["", "decode 1, tokens/s", *(f"{count} at once" for count in AT_ONCE[1:]), f"prompt of {LONG:,}, tokens/s",
              "its first token, cold / prefix cached", "start to first token"]  # fmt: skip
    aims = ["aim", "measured", "wanted", "reached", "of"]
    return "\n\n".join([
        f"Qwen3-0.6B's shape, random weights, {limits.threads} threads, {turns}; this machine: {measured}",
        markdown(header, [_row(standing) for standing in standings]),
        markdown(aims, [_aim(ratio) for ratio in ratios(standings)]),
    ])  # fmt: skip


def _row(standing: Standing) -> list[str]:
    f = standing.figures
    share = "" if f.read_share is None else f" ({f.read_share:.0%} of read)"
    decode = [f"{f.decode[count]:.3g}" for count in AT_ONCE]
    first = f"{seconds_text(f.cold_s)} / {seconds_text(f.shared_s)}"
    return [standing.name, decode[0] + share, *decode[1:], f"{f.prefill:,.0f}", first, seconds_text(f.start_s)]


def _aim(ratio: Ratio) -> list[str]:
    sign = "≤" if ratio.at_most else "≥"
    return [ratio.what, ratio.form.format(ratio.value), f"{sign} {ratio.form.format(ratio.aim)}", "yes" if ratio.reached else "no", ratio.compared]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
