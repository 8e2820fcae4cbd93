"""Microseconds the sampler takes for one row of Qwen3's vocabulary, best of many: python tests/benchmarks/bench_sampler.py"""

import time

import numpy as np
from slipway.runtime._native import core
from slipway.runtime.sampling import SamplingParams

VOCAB = 151_936
KINDS = {
    "greedy": {"temperature": 0},
    "temperature": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
    "top_k 20, top_p 0.95 (Qwen3)": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "typical_p 0.9": {"typical_p": 0.9},
    "greedy, 5 logprobs": {"temperature": 0, "logprobs": 5},
    "greedy, penalties, 1,000 tokens": {"temperature": 0, "repetition_penalty": 1.1},
}


def best_us(vocab: int, options: dict, history: list[int], repeats: int = 300) -> float:
    sampler, params = core.Sampler(vocab), SamplingParams(**options).with_defaults({})
    row = np.random.default_rng(0).normal(0, 3, vocab).astype(np.float32)
    row[:10] += 8  # a model is surer than noise
    times = []
    for seed in range(repeats):
        start = time.perf_counter()
        sampler.sample_row(row, params, history, len(history), seed=seed)
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def main() -> None:
    for name, options in KINDS.items():
        history = list(range(1000)) if "penalties" in name else [1]
        calling = best_us(1024, {"temperature": 0}, history)  # Python's share, nearly
        print(f"{name:32} {best_us(VOCAB, options, history) - calling:8.1f} us")


if __name__ == "__main__":
    main()
