"""`slipway bench`: an engine's speed at several loads, beside the machine's limits measured in the same run."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import click

from slipway.compiler.cli.capacity import check_load
from slipway.compiler.cli.options import Loading, json_option, loading_options, refuse_emulation
from slipway.compiler.cli.steps import Work, group_steps
from slipway.compiler.cli.tables import print_json, table
from slipway.compiler.errors import UserError
from slipway.compiler.quantities import rate_text, seconds_text, tokens_text
from slipway.runtime.capacity import Capacity

EPILOG = """
Every figure is the median of --rounds. The machine's limits (a GPU's: what a copy within its memory reaches) are measured before
and after each round of decoding: SHARE is the time that reading the step's bytes (weights and KV cache) once from memory would take at
the mean of the two, over the time it took: more than 100 % where they fit the caches. Where other programs use the memory, more rounds
make it surer. Tokens are random, greedy, and go on past the end-of-sequence token. Decoding counts from when the last prompt has been
read; of a step, prompts' steps among them, some time is idle: nothing is computed. What is not given is less than its default where the
engine holds less.

\b
Examples:
  slipway bench engine
  slipway bench engine --batch 1,32 --prompt 512 --new 64 --json
"""


REST_S = 5  # after the start, as a server has before its first request: memory may still be on its way into place


@dataclass(frozen=True)
class Decoding:
    """sequences at once; tokens_per_s over all of them; share: of what the read bandwidth allows; overhead_s: of a step, prompts' too, in which
    nothing is computed.
    """

    sequences: int
    tokens_per_s: float
    ttft_s: float
    share: float
    overhead_s: float


@dataclass(frozen=True)
class Prefill:
    """One prompt of `tokens`: until its first token, with nothing cached and with all but its tail cached."""

    tokens: int
    cold_s: float
    warm_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.cold_s


@dataclass(frozen=True)
class Bench:
    model: str
    weights: str
    threads: int
    read_bytes_per_s: float
    flops_per_s: float | None  # None: not measured, on a GPU
    start_s: float | None  # from starting a process to the first token of a prompt of 16, or fewer where the engine holds fewer
    decoding: list[Decoding]
    prefill: list[Prefill]


@dataclass(frozen=True)
class Load:
    """batch: numbers of sequences at once, of `prompt` and `new` tokens each. prefill, start: tokens of prompts that are read alone."""

    batch: list[int]
    prompt: int
    new: int
    prefill: list[int]
    start: int

    @classmethod
    def within(cls, capacity: Capacity, batch: list[int] | None, prompt: int | None, new: int | None, prefill: list[int] | None) -> Load:
        """None for the default, or what there is capacity for. Raises UserError where there is none for what was asked for."""
        longest, alone = capacity.tokens_of(max(batch or [1])), capacity.tokens_of(1)
        prompt = prompt or max(2, min(128, longest - new if new else longest // 2))
        new = new or max(2, min(128, longest - prompt))
        batch = batch or [count for count in (1, 8, 32) if capacity.takes(count, prompt + new)] or [1]
        prefill = prefill or [min(1024, alone - 1)]
        check_load(capacity, max(batch), prompt + new, "--prompt and --new")
        check_load(capacity, 1, max(prefill) + 1, "--prefill and a new token")
        return cls(batch, prompt, new, prefill, min(16, alone - 1))


class Counts(click.ParamType):
    """Whole numbers separated by commas."""

    name = "n,n,..."

    def convert(self, value, param, ctx) -> list[int]:
        if isinstance(value, list):
            return value
        parts = value.split(",")
        if not all(part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of numbers such as 1,8,32", param, ctx)
        return [int(part) for part in parts]


@click.command(epilog=EPILOG)
@loading_options
@click.option("--batch", type=Counts(), help="Sequences that decode at once.  [default: 1,8,32]")
@click.option("--prompt", type=click.IntRange(1), metavar="N", help="Prompt tokens of each.  [default: 128]")
@click.option("--new", type=click.IntRange(2), metavar="N", help="New tokens of each.  [default: 128]")
@click.option("--prefill", type=Counts(), help="Lengths of prompts that are read alone.  [default: 1024]")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Rounds of each measurement.")
@json_option
def bench(loading: Loading, rounds: int, as_json: bool, **asked: int | list[int] | None) -> None:
    """Measure ENGINE, an engine directory, beside this machine's limits."""
    result = measure(loading, asked, rounds)
    print_json(dataclasses.asdict(result)) if as_json else click.echo(as_text(result))


def measure(loading: Loading, asked: dict, rounds: int) -> Bench:
    """asked: what Load.within takes, None for what the user left open."""
    from slipway.runtime.machine import usable_cores
    from slipway.runtime.manifest import Manifest

    manifest = Manifest.read(loading.path)
    refuse_emulation("bench", manifest, loading)
    Load.within(Capacity.of(manifest, loading.kv_tokens), **asked)  # refuses what it can before anything is loaded
    with loading.engine() as engine:  # one that does not load is told of here; weights come into the page cache
        load = Load.within(Capacity.of(manifest, engine.kv_tokens), **asked)
    start_s = statistics.median(start_time(loading, load.start) for _ in range(rounds))
    with loading.engine() as engine:
        time.sleep(REST_S)
        threads = loading.threads or usable_cores()
        return measure_loaded(engine, load, rounds, threads, start_s, limits_of(manifest.target.is_gpu, threads))


def limits_of(is_gpu: bool, threads: int) -> Callable[[], tuple[float, float | None]]:
    """What measures bytes read and operations a second, of the GPU here or of so many threads."""
    from slipway.compiler.machine import measure_limits
    from slipway.runtime.gpu import copy_bytes_per_s

    def of_threads() -> tuple[float, float]:
        limits = measure_limits(threads)
        return limits.read_bytes_per_s, limits.flops_per_s

    return (lambda: (copy_bytes_per_s(), None)) if is_gpu else of_threads


def measure_loaded(engine, load: Load, rounds: int, threads: int, start_s: float | None, limits: Callable[[], tuple[float, float | None]]) -> Bench:
    run = _Run(engine, load.prompt, load.new, rounds, limits)
    decoding = [run.decoding(sequences) for sequences in load.batch]
    reading = [run.prefill(tokens) for tokens in load.prefill]
    weights = engine.manifest.recipe.get("precision", {}).get("weights", "")
    flops = [flops_per_s for _, flops_per_s in run.measured if flops_per_s]
    read = statistics.median(read_bytes_per_s for read_bytes_per_s, _ in run.measured)
    return Bench(engine.manifest.model, weights, threads, read, statistics.median(flops) if flops else None, start_s, decoding, reading)


def start_time(loading: Loading, prompt: int) -> float:
    """Seconds from starting a process until it has the first token of a prompt of so many tokens."""
    code = ("import json, sys; from slipway.runtime.engine import Engine, SamplingParams\n"
            "with Engine.load(sys.argv[1], **json.loads(sys.argv[2])) as engine:\n"
            "    engine.generate([list(range(int(sys.argv[3])))], SamplingParams(max_tokens=1, temperature=0)); print('first', flush=True)\n"
            "    sys.stdin.read()")  # fmt: skip
    command = [sys.executable, "-c", code, str(loading.path), json.dumps(loading.options), str(prompt)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        line = process.stdout.readline()
        taken = time.perf_counter() - started
        process.stdin.close()
    if line != b"first\n":
        raise UserError(str(loading.path), f"a process that loads it ended with {process.returncode} before its first token", hint="see above")
    return taken


class _Run:
    """Measurements on one loaded engine; the machine's limits are measured before and after each decoding."""

    def __init__(self, engine, prompt: int, new: int, rounds: int, limits):
        self.engine, self.prompt, self.new, self.rounds, self.limits = engine, prompt, new, rounds, limits
        self.random = random.Random(0)
        self.measured = [limits()]

    def decoding(self, sequences: int) -> Decoding:
        work = Work(sequences, self.prompt + self.new // 2)
        bytes_of_step = sum(group.bytes_moved(work) for group in group_steps(self.engine.manifest))
        rounds = []
        for _ in range(self.rounds):
            rounds.append(asyncio.run(self._decode_together(sequences)))
            self.measured.append(self.limits())
        rates, ttfts, overheads = zip(*rounds)
        reads = [read_bytes_per_s for read_bytes_per_s, _ in self.measured[-self.rounds - 1 :]]
        share = read_share(bytes_of_step, [rate / sequences for rate in rates], reads)
        return Decoding(sequences, statistics.median(rates), statistics.median(ttfts), share, statistics.median(overheads))

    def prefill(self, tokens: int) -> Prefill:
        cold, warm = [], []
        for _ in range(self.rounds):
            prompt = self._tokens(tokens)
            cold.append(self._first_token(prompt))
            warm.append(self._first_token(prompt[:-16] + self._tokens(min(16, tokens))))
        return Prefill(tokens, statistics.median(cold), statistics.median(warm))

    def _tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self.engine.manifest.plan.vocab_size) for _ in range(count)]

    def _first_token(self, prompt: list[int]) -> float:
        started = time.perf_counter()
        self.engine.generate([prompt], _greedy(1))
        return time.perf_counter() - started

    async def _decode_together(self, sequences: int) -> tuple[float, float, float]:
        """Tokens a second over all sequences once all prompts are read, the mean time to the first token, and a step's overhead."""
        before, started = self.engine.metrics(), time.perf_counter()
        arrivals = await asyncio.gather(*(self._arrivals(self._tokens(self.prompt)) for _ in range(sequences)))
        after, taken = self.engine.metrics(), max(times[-1] for times in arrivals) - started
        steps, computed = (after[name] - before[name] for name in ("compute_seconds_count", "compute_seconds_sum"))
        return decode_rate(arrivals), statistics.mean(times[0] for times in arrivals) - started, max(0.0, taken - computed) / steps

    async def _arrivals(self, prompt: list[int]) -> list[float]:
        """When each new token came."""
        times: list[float] = []
        async for delta in self.engine.stream(prompt, _greedy(self.new)):
            times += [time.perf_counter()] * len(delta.token_ids)
        return times


def decode_rate(arrivals: list[list[float]]) -> float:
    """Tokens a second over all sequences, from when the last has its first token."""
    all_read, end = max(times[0] for times in arrivals), max(times[-1] for times in arrivals)
    return sum(arrival > all_read for times in arrivals for arrival in times) / (end - all_read)


def read_share(bytes_of_step: int, rates: list[float], reads: list[float]) -> float:
    """The median share of the reading rate. rates: steps a second; reads: bytes a second just before each of them, and after the last.
    A shared machine's memory changes its speed all the time: each rate is compared with the mean of its two neighbours."""
    return statistics.median(rate * bytes_of_step / statistics.mean(around) for rate, around in zip(rates, itertools.pairwise(reads)))


def _greedy(max_tokens: int):
    from slipway.runtime.engine import SamplingParams

    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def as_text(result: Bench) -> str:
    decoding = [
        [f"decode, {d.sequences} at once", tokens_text(d.tokens_per_s), f"first token {seconds_text(d.ttft_s)}, {seconds_text(d.overhead_s)} of a step idle", f"{d.share:.0%}"]
        for d in result.decoding
    ]
    reading = [
        [f"prompt of {p.tokens}", tokens_text(p.tokens_per_s), f"first token {seconds_text(p.cold_s)}, {seconds_text(p.warm_s)} with its prefix cached", ""]
        for p in result.prefill
    ]
    read = f"{rate_text(result.read_bytes_per_s, 'B')} read"
    machine = f"{result.threads} threads; this machine: {read}, {rate_text(result.flops_per_s, 'FLOP')}" if result.flops_per_s else f"on a GPU: {read}"
    return "\n".join([
        f"{result.model}, {result.weights} weights, {machine}",
        table(("WORK", "SPEED", "LATENCY", "SHARE"), decoding + reading),
        f"process start to first token: {seconds_text(result.start_s)}",
    ])  # fmt: skip
