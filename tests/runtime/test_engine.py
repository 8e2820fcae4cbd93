"""The loaded engine on the toy model: every token is known beforehand, so a wrong block, row or prefix is a wrong token."""

import asyncio
import gc
import itertools
import os
import pathlib
import random
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from toy_engine import BEGIN, EOS, LIMITS, VOCAB, continuation

from slipway.runtime.engine import Engine, EngineError, RequestError, SamplingParams
from slipway.runtime.manifest import Manifest

GREEDY = SamplingParams(temperature=0, max_tokens=40)
ENDLESS = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
BLOCKS = ("kv_blocks_free", "kv_blocks_cached", "kv_blocks_owned")


def random_prompts(count, seed=0, longest=150):
    chance = random.Random(seed)
    return [[chance.randrange(255) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def expected(prompt, max_tokens=40):
    return continuation(prompt, min(max_tokens, LIMITS.max_sequence_length - len(prompt)))


def settle(engine):
    """Waits until the engine's books show no sequence."""
    until = time.monotonic() + 5
    while engine.metrics()["kv_blocks_owned"] and time.monotonic() < until:
        time.sleep(0.002)
    return engine.metrics()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_crowd_of_prompts(toy, threads):
    prompts = random_prompts(60)
    with Engine.load(toy(), threads=threads) as engine:
        completions = engine.generate(prompts, GREEDY)
        for prompt, completion in zip(prompts, completions, strict=True):
            assert completion.token_ids == expected(prompt)
            assert completion.finish_reason == ("stop" if completion.token_ids[-1] == EOS else "length")
            assert completion.prompt_tokens == len(prompt)
        metrics = settle(engine)
    assert metrics["kv_blocks_owned"] == 0 and sum(metrics[name] for name in BLOCKS) == 256
    assert metrics["requests_total"] == metrics["requests_finished_total"] == 60
    assert metrics["generated_tokens_total"] == sum(len(completion.token_ids) for completion in completions)


def test_more_sequences_than_memory_are_preempted_and_right(toy):
    prompts = random_prompts(12, longest=30)
    with Engine.load(toy(), kv_tokens=260) as engine:
        completions = engine.generate(prompts, ENDLESS)
        assert [c.token_ids for c in completions] == [continuation(p, 200, stop=()) for p in prompts]
        assert engine.metrics()["preemptions_total"] > 0


def test_prefixes_are_shared_within_a_salt(toy):
    prompt = list(range(100))
    with Engine.load(toy()) as engine:
        cached = [engine.submit(prompt + [i], GREEDY, cache_salt=salt).result().cached_tokens for i, salt in enumerate("aabba")]
        assert cached == [0, 100, 0, 100, 100]
        assert engine.submit(prompt + [9], GREEDY).result().token_ids == continuation(prompt + [9], 40)


def test_deltas_make_the_completion(toy):
    with Engine.load(toy()) as engine:
        request = engine.submit([1, 2, 3], GREEDY)
        deltas = list(request)
        completion = request.result()
        assert completion.token_ids == expected([1, 2, 3]) == [token for delta in deltas for token in delta.token_ids]
        assert completion.text == "".join(delta.text for delta in deltas)
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert list(request) == []
        times = completion.metrics
        assert 0 <= times.queue_s <= times.ttft_s <= times.total_s and times.inter_token_s > 0


def test_text_never_splits_a_character(toy):
    text = "Grüße, 日本語 und 🎉🎊! "
    size = len(text.encode())
    with Engine.load(toy(period=size)) as engine:
        request = engine.submit(list(text.encode()), SamplingParams(temperature=0, max_tokens=3 * size - 1))
        pieces = [delta.text for delta in request]
        assert "".join(pieces[:-1]) == (3 * text)[: len("".join(pieces[:-1]))] and "\ufffd" not in "".join(pieces[:-1])
        assert len(pieces) > 20 and request.result().text == (3 * text)[:-1]


def test_stop_strings_end_a_text_before_them(toy):
    prompt = list(b"abc, def. ")
    with Engine.load(toy(period=len(prompt))) as engine:
        for include in (False, True):
            params = SamplingParams(temperature=0, max_tokens=50, stop=["xyz", "def"], include_stop=include)
            completion = engine.submit(prompt, params).result()
            assert (completion.text, completion.finish_reason) == ("abc, def" if include else "abc, ", "stop")


def test_prompts_as_text(toy):
    with Engine.load(toy()) as engine:
        ids = [BEGIN, *b"Hi"]
        assert engine.generate("Hi", GREEDY)[0].token_ids == continuation(ids, 40)
        assert engine.generate("<begin>Hi", GREEDY)[0].token_ids == continuation(ids, 40)  # once, not twice
        chat = engine.render_chat([{"role": "user", "content": "Hi"}])
        assert chat == "<begin>user: Hi\nassistant: "
        assert engine.submit(chat, GREEDY).num_prompt_tokens == len("user: Hi\nassistant: ") + 1
        assert [len(engine.generate(p, GREEDY)) for p in ("a", [1, 2], ["a", "b"], [[1], "b", [2]], [])] == [1, 1, 2, 3, 0]


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(toy):
    with Engine.load(toy()) as engine:
        encode = engine.tokenizer.encode_batch_fast
        seen = []
        engine.tokenizer = SimpleNamespace(encode_batch_fast=lambda texts, **options: seen.append(len(texts[0])) or encode(texts, **options))
        with pytest.raises(RequestError, match="prompt: 100000 characters, expected at most"):
            engine.submit("a" * 100_000)
        with pytest.raises(RequestError, match="prompt: 267 tokens"):
            engine.submit("a" * 266)  # and the token a text begins with
        assert seen == [266]


def test_other_threads_run_while_a_long_text_is_tokenized(toy):
    with Engine.load(toy()) as engine:
        engine._longest_text = 10**8
        ticks, done = [time.monotonic()], threading.Event()

        def tick():
            while not done.wait(0.001):
                ticks.append(time.monotonic())

        ticking = threading.Thread(target=tick)
        ticking.start()
        start = time.monotonic()
        with pytest.raises(RequestError, match="tokens, expected"):
            engine.submit("a" * 500_000)
        taken = time.monotonic() - start
        done.set()
        ticking.join()
        assert max(later - earlier for earlier, later in itertools.pairwise(ticks)) < taken / 2


def test_several_completions_and_logprobs(toy):
    with Engine.load(toy()) as engine:
        params = SamplingParams(temperature=1.5, n=4, seed=7, max_tokens=30, ignore_eos=True, logprobs=2)
        first, again = (engine.generate([1, 2, 3], params) for _ in range(2))
        assert [c.token_ids for c in first] == [c.token_ids for c in again]
        assert len({tuple(c.token_ids) for c in first}) > 1 and [c.index for c in first] == [0, 1, 2, 3]
        for completion in first:
            assert len(completion.logprobs) == 30
            for token, entries in zip(completion.token_ids, completion.logprobs, strict=True):
                assert entries[0].token_id == token and len(entries) == 3
                assert entries[1].rank == 1 and entries[1].logprob >= entries[2].logprob
        likeliest = engine.generate([1, 2, 3], replace(params, n=1, temperature=0, seed=None))[0]
        assert all(entries[0].logprob == entries[1].logprob and entries[0].rank == 1 for entries in likeliest.logprobs)


def scores(engine, prompt):
    """The logprob of every token of the prompt behind the first, from completions of what stands before it."""
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=VOCAB)
    completions = engine.generate([prompt[:end] for end in range(1, len(prompt))], params)
    return [{e.token_id: e for e in c.logprobs[0]}[token].logprob for c, token in zip(completions, prompt[1:], strict=True)]


FEW_ROWS = replace(LIMITS, max_sequences=3, max_logit_rows=3)


@pytest.mark.parametrize("limits", [LIMITS, FEW_ROWS, replace(FEW_ROWS, max_sequences=1, max_batch_tokens=5, max_logit_rows=1)])
def test_logprobs_of_a_prompt(toy, limits):
    prompts = [[*range(40)], [7], [9, 9, 9, *continuation([9, 9, 9], 30)], *random_prompts(6, longest=60)]
    asked = replace(GREEDY, max_tokens=5, prompt_logprobs=2)
    with Engine.load(toy(limits=limits)) as engine:
        for prompt in prompts:
            engine.generate(prompt, GREEDY)  # and so in the cache
        completions = engine.generate(prompts * 2, asked)
        for prompt, completion in zip(prompts * 2, completions, strict=True):
            assert completion.token_ids == expected(prompt, 5)
            first, *others = completion.prompt_logprobs or [None]
            assert first is None and [entries[0].token_id for entries in others] == prompt[1:]
            assert [entries[0].logprob for entries in others] == scores(engine, prompt)
            assert all([entry.rank for entry in entries[1:]] == [1, 2] for entries in others)
        metrics = settle(engine)
        assert metrics["kv_blocks_owned"] == 0


def test_logprobs_of_prompts_that_are_preempted(toy):
    prompts = random_prompts(12, longest=60)
    asked = replace(ENDLESS, max_tokens=100, prompt_logprobs=0, n=2)
    with Engine.load(toy(), kv_tokens=260) as engine:
        pairs = [engine.submit(prompt, asked).results for prompt in prompts]
        for prompt, results in zip(prompts, pairs, strict=True):
            first, second = results(20)
            assert first.token_ids == second.token_ids == continuation(prompt, 100, stop=())
            assert [entries[0].logprob for entries in (first.prompt_logprobs or [None])[1:]] == scores(engine, prompt)
            assert second.prompt_logprobs is None
        assert engine.metrics()["preemptions_total"] > 0


def test_cancelling(toy):
    with Engine.load(toy(extra=("toy_dawdle",))) as engine:
        requests = [engine.submit([i], ENDLESS) for i in range(6)]
        next(iter(requests[2]))
        for request in requests[2:]:
            request.cancel()
        for i, request in enumerate(requests):
            completion = request.result(10)
            assert completion.finish_reason == ("cancelled" if i >= 2 else "length")
            assert completion.token_ids == continuation([i], 200, stop=())[: len(completion.token_ids)]
        requests[0].cancel()  # too late, and harmless
        assert settle(engine)["kv_blocks_owned"] == 0


def test_deadlines_and_priorities(toy):
    with Engine.load(toy(extra=("toy_dawdle",))) as engine:
        crowd = [engine.submit([i], ENDLESS) for i in range(40)]
        hurried = engine.submit([77], replace(ENDLESS, max_tokens=5), priority=-5)
        late = engine.submit([78], ENDLESS, deadline=0.02)
        assert hurried.result(20).metrics.total_s < crowd[-1].result(20).metrics.total_s
        assert late.result(20).finish_reason == "deadline"
        assert [request.result(20).finish_reason for request in crowd] == ["length"] * 40


def test_a_full_queue_refuses(toy):
    with Engine.load(toy(extra=("toy_dawdle",)), max_queued=3) as engine:
        running = []
        for i in range(LIMITS.max_sequences):
            running.append(engine.submit([i], ENDLESS))
            next(iter(running[-1]))  # it runs
        waiting = [engine.submit([i], ENDLESS) for i in range(3)]
        with pytest.raises(RequestError, match="the queue is full: 3 requests wait"):
            engine.submit([9], ENDLESS).result(10)
        assert all(request.result(20).finish_reason == "length" for request in running + waiting)


def test_a_request_that_fails_leaves_the_others_alone(toy):
    with Engine.load(toy(extra=("toy_choke",))) as engine:
        good = [engine.submit([i], replace(GREEDY, bad_words=[[255]])) for i in range(5)]
        bad = engine.submit([1, 255], GREEDY)
        with pytest.raises(RequestError, match="request: .*[Nn]a[Nn]"):
            bad.result(10)
        with pytest.raises(RequestError):
            list(bad)
        assert all(request.result(10).finish_reason in ("stop", "length") for request in good)
        metrics = settle(engine)
        assert metrics["requests_failed_total"] == 1 and metrics["kv_blocks_owned"] == 0


def test_a_segment_that_fails_fails_its_requests_and_the_engine_goes_on(toy):
    with Engine.load(toy(segment=True)) as engine:
        assert engine.generate([1, 2], GREEDY)[0].token_ids == expected([1, 2])
        fails = iter([True])

        def run(step, input_ids, positions, logit_rows):
            if next(fails, False):
                raise ValueError("no such luck")

        engine._native.run_segments_with(run)
        with pytest.raises(RequestError, match="no such luck"):
            engine.submit([5] * 20, GREEDY).result(10)
        assert engine.submit([5] * 20, replace(GREEDY, max_tokens=1)).result(10).cached_tokens == 0


def test_an_engine_that_breaks_fails_all_requests_and_says_why(toy):
    with Engine.load(toy(extra=("toy_break", "toy_dawdle")), threads=1) as engine:
        waiting = [engine.submit([i], ENDLESS) for i in range(40)]  # more than run at once
        assert engine.failure is None
        waiting.append(engine.submit([254], ENDLESS, priority=-1))
        for request in waiting:
            with pytest.raises(RequestError, match="the toy broke"):
                request.result(10)
        until = time.monotonic() + 5
        while engine.failure is None and time.monotonic() < until:
            time.sleep(0.002)
        assert str(engine.failure) == "engine: it has failed: the toy broke"
        with pytest.raises(EngineError, match="it has failed: the toy broke"):
            engine.submit([1], GREEDY)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dispatcher_that_dies_leaves_nobody_waiting(toy):
    with Engine.load(toy()) as engine:
        engine._dispatcher.token_text = lambda token: 1 // 0
        for request in [engine.submit([1], replace(ENDLESS, logprobs=0)), engine.submit([2], ENDLESS)]:
            with pytest.raises(EngineError, match="its dispatcher has failed: ZeroDivisionError"):
                request.result(10)
        assert "dispatcher" in str(engine.failure)
        with pytest.raises(EngineError, match="its dispatcher has failed"):
            engine.submit([1], GREEDY)


@pytest.mark.parametrize("prompt, options, where", [
    ([], {}, "prompt"), ([VOCAB], {}, "prompt"), ([-1], {}, "prompt"), ([1] * 256, {}, "prompt"), ([1.5], {}, "prompt"),
    ([1], {"sampling": SamplingParams(n=17)}, "n"), ([1], {"deadline": 0}, "deadline"),
    ([1], {"sampling": SamplingParams(logit_bias={999: 1})}, "logit_bias"),
])  # fmt: skip
def test_requests_that_cannot_be_served(toy, prompt, options, where):
    with Engine.load(toy()) as engine:
        with pytest.raises(RequestError) as error:
            engine.submit(prompt, **options)
        assert error.value.where == where
        assert engine.generate([1, 2], GREEDY)[0].token_ids == expected([1, 2])


def test_async_streams(toy):
    async def collect(engine, prompt):
        return [token async for delta in engine.stream(prompt, GREEDY) for token in delta.token_ids]

    async def leave_early(engine):
        stream = engine.stream([3], ENDLESS)
        async for _ in stream:
            break
        await stream.aclose()

    async def crowd(engine, prompts):
        return await asyncio.gather(leave_early(engine), *(collect(engine, prompt) for prompt in prompts))

    prompts = random_prompts(20, seed=4, longest=40)
    with Engine.load(toy(extra=("toy_dawdle",))) as engine:
        _, *results = asyncio.run(crowd(engine, prompts))
        assert results == [expected(prompt) for prompt in prompts]
        asyncio.run(leave_early(engine))
        assert settle(engine)["requests_cancelled_total"] == 2


def test_many_threads_submit(toy):
    wrong = []

    def work(engine, seed):
        for prompt in random_prompts(12, seed, 50):
            if engine.submit(prompt, GREEDY).result(30).token_ids != expected(prompt):
                wrong.append(prompt)

    with Engine.load(toy(), threads=2) as engine:
        threads = [threading.Thread(target=work, args=(engine, seed)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("drain", [True, False])
def test_closing_under_load_ends(toy, drain):
    engine = Engine.load(toy(extra=("toy_dawdle",)))
    requests = [engine.submit([i], replace(ENDLESS, max_tokens=30)) for i in range(40)]
    engine.close(drain=drain)
    if drain:
        assert [len(request.result(0).token_ids) for request in requests] == [30] * 40
    else:
        for request in requests:
            with pytest.raises((EngineError, RequestError)):
                request.result(0)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit([1])


def test_leaving_the_block_in_anger_does_not_wait(toy):
    with pytest.raises(ZeroDivisionError):
        with Engine.load(toy(extra=("toy_dawdle",))) as engine:
            request = engine.submit([1], ENDLESS)
            1 / 0
    with pytest.raises((EngineError, RequestError)):
        request.result(0)


def test_an_engine_nobody_holds_ends(toy):
    engine = Engine.load(toy())
    dispatcher = engine._dispatcher
    engine.generate([1], GREEDY)
    del engine
    gc.collect()
    dispatcher.join(5)
    assert not dispatcher.is_alive()


def resident_zeros():
    """Bytes in memory of the anonymous mappings for which huge pages were asked: those that steps write."""
    regions = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/self/smaps").read_text())
    ours = [region for region in regions if re.search(r"^VmFlags:.* hg", region, re.MULTILINE) and region.split()[4] == "0"]
    return sum(1024 * int(re.search(r"^Rss: +(\d+) kB", region, re.MULTILINE)[1]) for region in ours)


def test_an_idle_engine_brings_its_cache_into_memory(toy):
    path, tokens = toy(), 1 << 20
    kv = Manifest.read(path).plan.kv
    cache = tokens // kv.block_size * kv.layers * kv.block_bytes
    with Engine.load(path, kv_tokens=tokens) as engine:
        deadline = time.monotonic() + 60
        while (there := resident_zeros()) < cache:
            assert time.monotonic() < deadline, f"{there} of {cache} bytes"
            time.sleep(0.01)
        assert engine.generate([[1, 2, 3]], GREEDY)[0].token_ids == expected([1, 2, 3])


def test_metrics_have_numbers(toy):
    with Engine.load(toy()) as engine:
        engine.generate(random_prompts(5), GREEDY)
        metrics = engine.metrics()
    assert all(isinstance(value, float) for value in metrics.values())
    assert 0 < metrics["ttft_seconds_p50"] <= metrics["ttft_seconds_p99"] and metrics["step_seconds_count"] == metrics["steps_total"]


def test_times_of_steps(toy):
    with Engine.load(toy(extra=("toy_dawdle",))) as engine:
        seconds = engine.time_steps(sequences=4, context=40, rounds=5)
    assert len(seconds) == 5 and seconds[4] >= 1e-3 > seconds[2]
