"""Microseconds that a grammar costs a sequence at each step, beside a sequence without: python tests/benchmarks/bench_grammar.py

Vocabularies: demo-llama's, and one as large as Qwen3's, of the most frequent pieces of the held-out text. Tokens are drawn from noise,
so that sequences visit more of a grammar than a model would.
"""

import collections
import pathlib
import time

import numpy as np
from slipway.runtime._native import core
from slipway.runtime.grammar import Grammar, GrammarCompiler
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.vocabulary import Vocabulary, read_vocabulary
from tokenizers import Tokenizer

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
LARGE = 151_936
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["name", "age", "tags"],
}
GRAMMARS = {
    "JSON schema": Grammar.json_schema(PERSON),
    "JSON object": Grammar.json_schema({"type": "object"}),
    "regex": Grammar.regex(r"([a-z]{2,8} )*\d{4}-\d{2}-\d{2}"),
    "500 choices": Grammar.choice([f"option {number}" for number in range(500)]),
}


def small() -> Vocabulary:
    return read_vocabulary(Tokenizer.from_file(str(RECIPES / "demo-llama/checkpoint/tokenizer.json")))


def large() -> Vocabulary:
    text = (RECIPES / "heldout.txt").read_bytes()
    counts = collections.Counter(text[start : start + length] for length in range(2, 17) for start in range(len(text) - length))
    pieces = [bytes([byte]) for byte in range(256)] + [piece for piece, _ in counts.most_common(LARGE - 256)]
    return Vocabulary(pieces, [False] * len(pieces), False)


def step_us(vocab_size: int, grammar, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of each next() and each commit(); sequences that end make way for others."""
    config = core.SchedulerConfig()
    limits = {"num_blocks": 64, "vocab_size": vocab_size, "max_sequence_length": 1024, "max_batch_tokens": 64, "max_sequences": 1}
    for name, value in {**limits, "max_logit_rows": 8}.items():
        setattr(config, name, value)
    scheduler, sampler, noise = core.Scheduler(config), core.Sampler(vocab_size), np.random.default_rng(0)
    taken, given = [], []
    for number in range(steps):
        if not scheduler.has_work():
            scheduler.add(number, [1], SamplingParams(seed=0, max_tokens=100).with_defaults({}), 0.0, grammar=grammar)
        start = time.perf_counter()
        step = scheduler.next(0.0)
        taken.append(time.perf_counter() - start)
        drawn = sampler.sample(noise.normal(0, 3, vocab_size).astype(np.float32), step["rows"][0])
        start = time.perf_counter()
        scheduler.commit([drawn], 0.0)
        given.append(time.perf_counter() - start)
    return np.array(taken) * 1e6, np.array(given) * 1e6


def main() -> None:
    print(f"{'us':>28} {'compile':>9} {'again':>7} {'mask: mean':>11} {'median':>8} {'p99':>8} {'take':>7}")
    for vocabulary in (small(), large()):
        size = len(vocabulary.pieces)
        plain_next, plain_commit = (np.median(times) for times in step_us(size, None))
        compiler = GrammarCompiler(vocabulary, size)
        compiler.compile(Grammar.regex("a"))  # the first waits for what all need
        for name, grammar in GRAMMARS.items():
            times = []
            for _ in range(2):
                start = time.perf_counter()
                compiled = compiler.compile(grammar)
                times.append((time.perf_counter() - start) * 1e6)
            masks, takes = step_us(size, compiled)
            masks, take = masks - plain_next, np.median(takes) - plain_commit
            print(f"{size:8,} tokens {name:>12.12} {times[0]:9,.0f} {times[1]:7.0f} {masks.mean():11.0f} {np.median(masks):8.0f} "
                  f"{np.percentile(masks, 99):8.0f} {take:7.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
