"""With `deterministic: true` what else is in the batch changes no bit of a request's tokens and logprobs."""

import random

import pytest
from slipway.runtime.engine import Engine, SamplingParams

FORMATS = {
    "bf16": ("bf16",),
    "int8": ("int8",),
    "int8 with an int8 KV cache": ("int8", "precision.kv_cache=int8"),
    "int4 g64": ("int4",),
    "int4 g32 with zero points": ("int4", "precision.group_size=32", "precision.zero_point=true"),
    "int4 g128": ("int4", "precision.group_size=128"),
}


def outcome(completion):
    return completion.token_ids, [[(entry.token_id, entry.logprob) for entry in token] for token in completion.logprobs]


@pytest.mark.parametrize("name", FORMATS)
def test_alone_and_among_31_others(build, name):
    precision, *overrides = FORMATS[name]
    engine_dir = build(f"demo-llama/cpu-{precision}", "runtime.deterministic=true", "verify.when=never", *overrides)
    numbers = random.Random(7)
    mine = [numbers.randrange(10, 2000) for _ in range(150)]
    others = [[numbers.randrange(10, 2000) for _ in range(numbers.randrange(1, 200))] for _ in range(31)]
    params = SamplingParams(max_tokens=48, temperature=0.8, seed=3, logprobs=4, ignore_eos=True)
    with Engine.load(engine_dir) as engine:
        alone = outcome(engine.generate([mine], params)[0])
    with Engine.load(engine_dir) as engine:
        crowd = [engine.submit(prompt, params) for prompt in others[:15]]
        me = engine.submit(mine, params)
        crowd += [engine.submit(prompt, params) for prompt in others[15:]]
        among = outcome(me.result())
        for request in crowd:
            request.result()
    assert alone == among


def test_a_cached_prefix_changes_nothing(build):
    engine_dir = build("demo-qwen3/cpu-int4", "runtime.deterministic=true", "verify.when=never")
    prompt = [random.Random(1).randrange(10, 2000) for _ in range(200)]
    params = SamplingParams(max_tokens=24, temperature=0, logprobs=2, ignore_eos=True)
    with Engine.load(engine_dir) as engine:
        first, second = (engine.generate([prompt], params)[0] for _ in range(2))
    assert first.cached_tokens == 0 and second.cached_tokens >= 160
    assert outcome(first) == outcome(second)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
def test_a_prompt_longer_than_a_step(build, precision):
    """Its first chunks want no logits at all."""
    engine_dir = build(f"demo-llama/cpu-{precision}", "runtime.deterministic=true", "verify.when=never")
    prompt = [random.Random(2).randrange(10, 2000) for _ in range(1500)]
    params = SamplingParams(max_tokens=8, temperature=0, logprobs=2, ignore_eos=True)
    with Engine.load(engine_dir) as engine:
        assert engine.manifest.limits.max_batch_tokens < len(prompt)
        whole = outcome(engine.generate([prompt], params)[0])
    with Engine.load(engine_dir) as engine:
        crowd = [engine.submit(prompt[: 100 * i], params) for i in range(1, 8)]
        among = outcome(engine.submit(prompt, params).result())
        for request in crowd:
            request.result()
    assert whole == among
