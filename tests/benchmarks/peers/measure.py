"""A contestant  ->  its speed at each kind of work, in a process that is started for this and ended after it.

The work: prompts of 128 random tokens and 128 new ones; prompts of 1,024 read alone; 16 tokens from the start of the process.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from peers.contestants import Contestant
from peers.protocol import Worker
from peers.random_checkpoint import QWEN3_06B
from slipway.compiler.cli.bench import REST_S, decode_rate, read_share
from slipway.compiler.machine import MachineLimits, measure_limits

AT_ONCE = (1, 8, 32)
PROMPT = NEW = 128
LONG = 1024
TAIL = 16
REPEATS = 3  # of a work in a turn, the start apart; the median counts
REPEATS_ALONE = 9  # of decoding one sequence: it is compared with reading, whose rate moves by a third on a shared machine


@dataclass(frozen=True)
class Figures:
    """decode: tokens a second over all sequences, by their number. *_s: seconds to the first token.

    cold: of LONG tokens. shared: of LONG cached ones and TAIL others. start: of TAIL tokens, from starting the process.
    read_share: what reading a step's bytes once would take over what a step took, one sequence; None where the bytes are not known.
    """

    decode: dict[int, float]
    cold_s: float
    shared_s: float
    start_s: float
    read_share: float | None = None

    @property
    def prefill(self) -> float:
        """Tokens a second."""
        return LONG / self.cold_s


def measure(contestant: Contestant, threads: int, seed: int, logs: Path) -> tuple[Figures, MachineLimits]:
    """One turn, and the machine's limits around the decoding of one sequence. seed: all contestants of a round have the same prompts."""
    contestant.bring_files(logs)
    started = time.perf_counter()
    with contestant.worker(logs) as worker:
        prompts = Prompts(seed)
        worker.ask(prompts.draw(1, TAIL), 1)
        start_s = time.perf_counter() - started
        time.sleep(REST_S)
        warm_up(worker, prompts)
        alone, limits = [], [measure_limits(threads)]
        for _ in range(REPEATS_ALONE):
            alone.append(decode_rate(worker.ask(prompts.draw(1, PROMPT), NEW)))
            limits.append(measure_limits(threads))
        at_once = {
            count: statistics.median(decode_rate(worker.ask(prompts.draw(count, PROMPT), NEW)) for _ in range(REPEATS))
            for count in AT_ONCE[1:]
        }
        firsts = [read_alone(worker, prompts) for _ in range(REPEATS)]
    cold_s, shared_s = (statistics.median(times) for times in zip(*firsts))
    reads = [one.read_bytes_per_s for one in limits]
    share = read_share(contestant.bytes_of_step(PROMPT + NEW // 2), alone, reads) if contestant.is_ours else None
    figures = Figures({1: statistics.median(alone)} | at_once, cold_s, shared_s, start_s, share)
    return figures, MachineLimits(threads, statistics.median(reads), statistics.median(one.flops_per_s for one in limits))


def read_alone(worker: Worker, prompts: Prompts) -> tuple[float, float]:
    """Seconds to the first token of a long prompt, and then of the same with a tail."""
    (long,), (tail,) = prompts.draw(1, LONG), prompts.draw(1, TAIL)
    return worker.ask([long], 1)[0][0], worker.ask([long + tail], 1)[0][0]


class Prompts:
    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def draw(self, count: int, length: int) -> list[list[int]]:
        return [self.random.choices(range(QWEN3_06B.vocab_size), k=length) for _ in range(count)]


def warm_up(worker: Worker, prompts: Prompts) -> None:
    """Once every shape of work: what a contestant allocates or compiles when it first meets one is not measured."""
    for count in AT_ONCE:
        worker.ask(prompts.draw(count, PROMPT), 8)
    worker.ask(prompts.draw(1, LONG), 1)
    worker.ask(prompts.draw(1, LONG + TAIL), 1)


def median(turns: list[Figures]) -> Figures:
    """Of each figure by itself."""
    shares = [turn.read_share for turn in turns if turn.read_share is not None]
    return Figures(
        {count: statistics.median(turn.decode[count] for turn in turns) for count in turns[0].decode},
        *(statistics.median(getattr(turn, name) for turn in turns) for name in ("cold_s", "shared_s", "start_s")),
        statistics.median(shares) if shares else None,
    )
