"""How long each step of a plan takes, measured by real requests that decode together."""

from __future__ import annotations

import statistics

from slipway.runtime.capacity import Capacity
from slipway.runtime.errors import EngineError
from slipway.runtime.sampling import SamplingParams

ROUNDS = 9
ATTEMPTS = 10  # of a small model the first sequence may end before the last is submitted


def median_step_seconds(engine, sequences: int, context: int, rounds: int) -> list[float]:
    """Medians over `rounds` decoding steps of `sequences` sequences with about `context` cached tokens. Needs an idle engine."""
    limits, vocab_size = engine.manifest.limits, engine.manifest.plan.vocab_size
    if not 1 <= sequences <= limits.max_sequences:
        raise EngineError("sequences", f"{sequences}", f"1..{limits.max_sequences}")
    longest = Capacity.of(engine.manifest, engine.kv_tokens).tokens_of(sequences)
    tokens = tokens_to_measure(limits, sequences, context, rounds)
    if context < 1 or context + tokens > longest:
        hint = "more kv_tokens, or fewer sequences" if longest < limits.max_sequence_length else ""
        raise EngineError("context", f"{context}, and {tokens} new tokens", f"at most {longest} together for each of {sequences}", hint)
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = [_prompt(number, context, vocab_size) for number in range(sequences)]
    for _ in range(ATTEMPTS):
        decoding = _decoding_steps(engine, prompts, sampling)
        if decoding:
            break
    else:
        raise EngineError("sequences", f"{sequences} never decoded together", hint="fewer sequences, or a shorter context")
    return [statistics.median(times) for times in zip(*decoding[-rounds:], strict=True)]


def _decoding_steps(engine, prompts: list[list[int]], sampling: SamplingParams) -> list[list[float]]:
    """The seconds of each step, for each time that all prompts decoded together."""
    engine._native.record_step_times(True)
    try:
        engine.generate(prompts, sampling)
    finally:
        engine._native.record_step_times(False)
    return [seconds for num_tokens, num_sequences, seconds in engine._native.take_step_times() if num_tokens == num_sequences == len(prompts)]


def tokens_to_measure(limits, sequences: int, context: int, rounds: int = ROUNDS) -> int:
    """New tokens of each sequence. While other prompts are still being read, the first to finish decode alone: they must outlast that."""
    prefills = -(-sequences * context // limits.max_batch_tokens)
    return rounds + 1 + (2 * prefills + 1 if sequences > 1 else 0)


def _prompt(number: int, context: int, vocab_size: int) -> list[int]:
    """Prompts that share no prefix."""
    return [(number * 7919 + position * 31) % vocab_size for position in range(context)]
