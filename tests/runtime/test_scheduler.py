"""The scheduler under random requests, tiny memories and a model that checks every read of the KV cache; then case by case."""

import numpy as np
import pytest
from fake_model import EOS, Engine, expected_output, params
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from slipway.runtime._native import core
from slipway.runtime.vocabulary import Vocabulary

LONGEST = 40
PARAMS = st.builds(
    params,
    max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    min_tokens=st.just(0),
    temperature=st.sampled_from([0.0, 0.7]),
    top_k=st.sampled_from([0, 3]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    stop_token_ids=st.sampled_from([[], [5]]),
    bad_words=st.sampled_from([[], [[3, 4]]]),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    speculate_tokens=st.sampled_from([0, 0, 3]),
)


class Serving(RuleBasedStateMachine):
    """Whatever happens: blocks are conserved, reads are right, all requests end, tokens are those of the request alone."""

    @initialize(
        num_blocks=st.integers(4, 16),
        max_batch_tokens=st.integers(1, 24),
        max_sequences=st.integers(1, 5),
        max_logit_rows=st.integers(1, 8),
        speculation_max_sequences=st.integers(0, 5),
        overlaps=st.booleans(),
    )
    def start(self, **limits):
        self.engine = Engine(max_sequence_length=LONGEST, ageing_s=5.0, **limits)
        self.room = min(LONGEST, limits["num_blocks"] * 4 + 1)
        self.requests, self.cancelled, self.deadlines = {}, set(), {}

    @rule(
        prompt=st.lists(st.integers(1, 2), min_size=1, max_size=24),
        p=PARAMS,
        priority=st.integers(-2, 2),
        patience=st.one_of(st.none(), st.integers(0, 20)),
        salt=st.integers(0, 1),
    )
    def add(self, prompt, p, priority, patience, salt):
        id = len(self.requests)
        deadline = None if patience is None else self.engine.now + patience
        refusal = self.engine.add(id, prompt, p, priority=priority, deadline=deadline, salt=salt)
        assert (refusal is not None) == (len(prompt) >= self.room)
        if refusal is None:
            self.requests[id], self.deadlines[id] = (prompt, p), deadline

    @rule(steps=st.integers(1, 8))
    def step(self, steps):
        for _ in range(steps):
            self.engine.step()

    @rule(pick=st.integers(0, 100), in_flight=st.booleans())
    def cancel(self, pick, in_flight):
        if not self.requests:
            return
        id = pick % len(self.requests)
        self.cancelled.add(id)
        if in_flight:
            self.engine.step(during=lambda: self.engine.cancel(id))
        self.engine.cancel(id)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        engine = self.engine.run()
        assert engine.scheduler.stats().owned_blocks == 0
        assert set(engine.finishes) == {(id, index) for id, (_, p) in self.requests.items() for index in range(p.n)}
        for (id, index), finish in engine.finishes.items():
            prompt, p = self.requests[id]
            room = self.room - len(prompt)
            expected = expected_output(prompt, p, index, min(p.max_tokens or room, room))
            got = engine.outputs[id, index]
            ends = not p.ignore_eos and expected[-1] == EOS or expected[-1] in p.stop_token_ids
            if finish == "cancelled":
                assert id in self.cancelled and got == expected[: len(got)]
            elif finish == "deadline":
                assert self.deadlines[id] is not None and not got
            else:
                assert (finish, got) == ("stop" if ends else "length", expected)


Serving.TestCase.settings = settings(max_examples=120, stateful_step_count=25, deadline=None)
TestServing = Serving.TestCase


def order_of_first_tokens(engine):
    return [id for id, _ in sorted(engine.metrics, key=lambda key: engine.metrics[key].first_token_s)]


def test_rank_is_arrival_plus_priority_times_ageing():
    engine = Engine(max_sequences=1, ageing_s=10.0)
    engine.add(0, [1] * 4, params(max_tokens=30, ignore_eos=True))
    engine.step()
    for id, (priority, arrival) in enumerate([(1, 1), (0, 5), (0, 12), (-1, 20)], 1):  # ranks 11, 5, 12, 10
        engine.now = arrival
        engine.add(id, [1] * 4, params(max_tokens=1), priority=priority)
    engine.scheduler.cancel(0, engine.now)
    assert order_of_first_tokens(engine.run())[1:] == [2, 4, 1, 3]


def test_a_stream_of_urgent_requests_does_not_starve_a_patient_one():
    engine = Engine(max_sequences=1, ageing_s=5.0)
    engine.add(0, [1, 2], params(max_tokens=2, ignore_eos=True), priority=2)
    for id in range(1, 60):
        engine.add(id, [1, 2], params(max_tokens=2, ignore_eos=True))
        engine.step()
        if (0, 0) in engine.finishes:
            break
    assert engine.now < 30


def test_an_urgent_request_takes_the_place_of_a_running_one_and_recompute_hits_the_cache():
    engine = Engine(max_sequences=1, num_blocks=16)
    calm, urgent = [1] * 17, [2] * 5
    engine.add(0, calm, params(max_tokens=9, ignore_eos=True))
    for _ in range(4):
        engine.step()
    engine.add(1, urgent, params(max_tokens=2, ignore_eos=True), priority=-1)
    computed = lambda id: sum(step["request_ids"] == [id] and len(step["token_ids"]) for step in engine.steps)  # noqa: E731
    engine.run()
    assert engine.metrics[0, 0].preemptions == 1 and engine.metrics[1, 0].preemptions == 0
    assert engine.metrics[1, 0].finished_s < engine.metrics[0, 0].finished_s
    assert engine.outputs[0, 0] == expected_output(calm, params(ignore_eos=True), 0, 9)
    assert computed(0) <= 17 + 8 + 4  # at most a block again


def test_none_gives_way_to_one_that_would_not_fit_all_the_same():
    engine = Engine(num_blocks=10, max_batch_tokens=64)
    engine.add(0, [1] * 13, params(max_tokens=3, ignore_eos=True), priority=-2)
    engine.add(1, [2] * 18, params(max_tokens=4, ignore_eos=True), priority=2)
    engine.step()
    engine.add(2, [2] * 8 + [3] * 16, params(max_tokens=1))  # the blocks it shares with the last in rank are no gain to it
    engine.step()
    assert engine.scheduler.stats().running_sequences == 2 and engine.scheduler.stats().preemptions == 0
    engine.run()
    assert engine.metrics[2, 0].finished_s < engine.metrics[1, 0].finished_s  # it goes first as soon as that lets it run


def test_out_of_blocks_the_last_in_rank_gives_way():
    engine = Engine(num_blocks=8, max_sequences=3)
    for id in range(3):
        engine.add(id, [id + 1] * 6, params(max_tokens=14, ignore_eos=True))
    engine.run()
    preempted = [engine.metrics[id, 0].preemptions for id in range(3)]
    assert preempted[0] == 0 and preempted[2] > 0
    assert order_of_first_tokens(engine) == [0, 1, 2]


def test_prefixes_are_shared_within_a_salt():
    engine = Engine()
    prompt = [1, 2, 3] * 5
    for id, salt in enumerate([7, 7, 8]):
        engine.add(id, prompt, params(max_tokens=1), salt=salt)
        engine.run()
    assert [engine.metrics[id, 0].cached_tokens for id in range(3)] == [0, 12, 0]


def test_a_prefix_that_arrives_many_times_at_once_is_computed_once():
    engine = Engine(max_batch_tokens=64)
    for id in range(4):
        engine.add(id, [1, 2, 3] * 5 + [4 + id], params(max_tokens=1))
    engine.run()
    assert [len(step["token_ids"]) for step in engine.steps] == [16, 3 * 4]
    assert [engine.metrics[id, 0].cached_tokens for id in range(4)] == [0, 12, 12, 12]


def test_sequences_of_one_request_share_the_blocks_of_its_prompt():
    engine = Engine()
    engine.add(0, [1, 2, 3] * 5, params(n=3, max_tokens=5, temperature=1.0, ignore_eos=True, seed=11))
    engine.run()
    assert [engine.metrics[0, index].cached_tokens for index in range(3)] == [0, 12, 12]
    assert len({tuple(engine.outputs[0, index]) for index in range(3)}) > 1


def test_long_prompts_are_computed_in_chunks_beside_decodes():
    engine = Engine(max_batch_tokens=8)
    engine.add(0, [1, 2], params(max_tokens=12, ignore_eos=True))
    engine.step()
    engine.add(1, [3] * 30, params(max_tokens=1))
    engine.run()
    assert [len(step["token_ids"]) for step in engine.steps[1:6]] == [8, 8, 8, 8, 3]
    assert all(step["request_ids"][0] == 0 for step in engine.steps[1:6])


def test_drafts_come_true_and_yield_to_many_sequences():
    prompt, p = [1, 2, 3, 4] * 3, params(max_tokens=24, ignore_eos=True, speculate_tokens=4)
    engine = Engine(num_blocks=64, speculation_max_sequences=1)
    engine.add(0, prompt, p)
    engine.run()
    assert engine.outputs[0, 0] == expected_output(prompt, p, 0, 24)
    assert engine.metrics[0, 0].accepted_tokens > 0 and len(engine.steps) < 24
    engine.add(1, prompt, p)
    engine.add(2, prompt, p)
    engine.steps.clear()
    engine.step()
    engine.step()
    assert len(engine.steps[-1]["rows"]) == 2  # no drafts among two


def test_prompt_lookup():
    assert core.prompt_lookup([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
    assert core.prompt_lookup([5, 2, 3, 9, 1, 2, 3], 9) == [9, 1, 2, 3]  # the last two
    assert core.prompt_lookup([7, 7, 7, 7], 3) == [7]
    assert core.prompt_lookup([1, 2, 3, 4], 3) == core.prompt_lookup([], 3) == []


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ([], {}, "empty"),
        ([99], {}, "token 99"),
        ([1] * 64, {}, "64 tokens, expected at most 63: max_sequence_length"),
        ([1], {"stop_token_ids": [50]}, "stop_token_ids"),
    ],
)
def test_refusals(prompt, options, says):
    assert says in Engine().add(0, prompt, params(**options))


def test_refusals_for_want_of_room():
    engine = Engine(num_blocks=3, max_sequences=1, max_queued_requests=2)
    assert "13 tokens, expected at most 12: the whole KV cache" in engine.add(9, [1] * 13)
    assert engine.add(0, [1] * 12, params(ignore_eos=True)) is None
    assert "in use" in engine.add(0, [1])
    engine.step()
    assert engine.add(1, [1]) is None and engine.add(2, [1]) is None
    assert "the queue is full: 2 requests wait" in engine.add(3, [1])
    assert engine.run().finishes[0, 0] == "length" and len(engine.outputs[0, 0]) == 1


def test_deadlines_are_for_the_queue():
    engine = Engine(max_sequences=1)
    engine.add(0, [1], params(max_tokens=9, ignore_eos=True), deadline=1.5)
    engine.step()
    engine.add(1, [1], params(n=2), deadline=4.0)
    engine.run()
    assert engine.finishes == {(0, 0): "length", (1, 0): "deadline", (1, 1): "deadline"}


def test_a_row_that_fails_ends_its_request_alone():
    engine = Engine()
    for id in range(2):
        engine.add(id, [1, 2], params(max_tokens=3, ignore_eos=True))
    step = engine.scheduler.next(1.0)
    good, bad = engine.compute(step)[0], core.Sampled(0, "NaN")
    engine.take(engine.scheduler.commit([good, bad], 1.0))
    engine.run()
    assert engine.finishes == {(0, 0): "length", (1, 0): "error"} and engine.errors[1, 0] == "NaN"


def test_a_step_that_fails_ends_what_was_in_it():
    engine = Engine(max_sequences=1)
    engine.add(0, [1, 2], params(max_tokens=3))
    engine.add(1, [1, 2], params(max_tokens=3, ignore_eos=True))
    engine.scheduler.next(1.0)
    engine.take(engine.scheduler.fail("a segment failed", 1.0))
    engine.run()
    assert engine.finishes == {(0, 0): "error", (1, 0): "length"} and engine.errors[0, 0] == "a segment failed"


def test_all_cancelled_nothing_is_left():
    engine = Engine(max_sequences=2)
    for id in range(4):
        engine.add(id, [1, 2, 3, 4, 5], params(n=2))
    engine.step(during=lambda: [engine.cancel(id) for id in range(4)])
    assert not engine.step() and not engine.scheduler.has_work()
    assert set(engine.finishes.values()) == {"cancelled"} and len(engine.finishes) == 8
    assert engine.scheduler.stats().owned_blocks == 0


def test_misuse_is_told_apart_from_bad_luck():
    engine = Engine()
    engine.add(0, [1])
    engine.scheduler.next(1.0)
    with pytest.raises(RuntimeError, match="before the last step was committed"):
        engine.scheduler.next(2.0)
    with pytest.raises(RuntimeError, match="one entry a logit row"):
        engine.scheduler.commit([], 2.0)
    with pytest.raises(ValueError, match="max_batch_tokens: 0"):
        Engine(max_batch_tokens=0)


LETTERS = Vocabulary([b"<eos>", *(bytes([0x60 + i]) for i in range(1, 12))], [True] + [False] * 11, False)


def text_of(p, forced, **options):
    """The text and finish of a request whose tokens are forced."""
    engine = Engine(LETTERS, **options)
    follow = lambda output: [*forced, EOS][len(output) :][:1]  # noqa: E731
    engine.add(0, [1, 2], p, grammar=follow)
    engine.run()
    return engine.texts[0, 0], engine.finishes[0, 0], engine.outputs[0, 0]


def test_ends_and_their_text():
    spell = lambda word: [ord(letter) - 0x60 for letter in word]  # noqa: E731
    word = spell("abcabcabc")
    assert text_of(params(max_tokens=4), word) == ("abca", "length", word[:4])
    assert text_of(params(stop=["ca"]), word) == ("ab", "stop", word[:4])
    assert text_of(params(stop=["ca"], include_stop=True), word) == ("abca", "stop", word[:4])
    assert text_of(params(stop=["ca"], min_tokens=5, speculate_tokens=4), word) == ("abcab", "stop", word[:7])
    assert text_of(params(stop=["cx"], max_tokens=3), word) == ("abc", "length", word[:3])
    assert text_of(params(stop_token_ids=[3]), word) == ("ab", "stop", word[:3])
    assert text_of(params(stop_token_ids=[3], include_stop=True), word) == ("abc", "stop", word[:3])
    assert text_of(params(), [1, 2, EOS]) == ("ab", "stop", [1, 2, EOS])
    assert text_of(params(ignore_eos=True, max_tokens=4, skip_special_tokens=False), [1, EOS, 2, 3]) == ("a<eos>bc", "length", [1, EOS, 2, 3])


def test_a_constraint_sees_the_drafts():
    """Drafts that the grammar forbids are rejected by their own row's mask."""
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    p = params(max_tokens=8, speculate_tokens=3)
    forced = [3, 1, 2, 4, 5, 6, 7, 8]
    engine = Engine()
    engine.add(0, prompt, p, grammar=lambda output: [*forced, EOS][len(output) :][:1])
    engine.run()
    assert engine.outputs[0, 0] == forced and engine.metrics[0, 0].accepted_tokens == 2


def test_unseeded_requests_differ():
    engine = Engine()
    for id in range(3):
        p = params(max_tokens=12, temperature=2.0, ignore_eos=True, seed=None)
        engine.add(id, [1, 2], p)
    engine.run()
    assert len({tuple(output) for output in engine.outputs.values()}) == 3
    assert np.ptp([len(output) for output in engine.outputs.values()]) == 0


def test_decodes_begin_while_the_step_before_runs():
    engine = Engine(overlaps=True, again_one_in=10**9)
    p = params(max_tokens=20, ignore_eos=True)
    for id in range(3):
        engine.add(id, [1, 2, id + 1], p)
    engine.run()
    assert all(engine.outputs[id, 0] == expected_output([1, 2, id + 1], p, 0, 20) for id in range(3))
    assert len(engine.steps) == 20 and engine.num_ahead == 19


def test_a_sequence_whose_token_could_not_be_drawn_is_the_hosts_from_then_on():
    engine = Engine(overlaps=True, again_one_in=1)
    p = params(max_tokens=6, ignore_eos=True)
    engine.add(0, [1, 2], p)
    engine.run()
    assert engine.outputs[0, 0] == expected_output([1, 2], p, 0, 6)
    # a step that cannot draw, one ahead for nobody, then those whose logits are the host's
    assert [step["rows"][0].on_host for step in engine.steps] == [False, False, *[True] * 6]


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.2}, {"bad_words": [[3, 4]]}, {"logprobs": 0}, {"typical_p": 0.5}, {"speculate_tokens": 2}])
def test_what_needs_the_token_before_waits_for_it(options):
    engine = Engine(overlaps=True)
    engine.add(0, [1, 2], params(max_tokens=6, ignore_eos=True, **options))
    engine.run()
    assert engine.num_ahead == 0 and len(engine.outputs[0, 0]) == 6


def test_one_that_ends_does_not_stop_the_others():
    engine = Engine(overlaps=True, again_one_in=10**9)
    long, short = params(max_tokens=12, ignore_eos=True), params(max_tokens=12, ignore_eos=True, stop_token_ids=[expected_output([1, 2], params(ignore_eos=True), 0, 3)[2]])
    engine.add(0, [1, 2], short)
    engine.add(1, [2, 1], long)
    engine.run()
    assert len(engine.outputs[0, 0]) <= 3 and len(engine.outputs[1, 0]) == 12
    assert engine.num_ahead == 11 and len(engine.steps) == 12


def test_a_request_that_comes_in_is_admitted_by_the_next_step():
    engine = Engine(overlaps=True, again_one_in=10**9)
    engine.add(0, [1, 2], params(max_tokens=30, ignore_eos=True))
    for _ in range(4):
        engine.step()
    engine.add(1, [2, 1], params(max_tokens=2, ignore_eos=True))
    for _ in range(2):  # the one in flight, and the one that admits
        engine.step()
    assert len(engine.outputs[1, 0]) == 1


def test_ahead_of_nothing_is_nothing():
    engine = Engine()
    with pytest.raises(RuntimeError, match="without one step in flight"):
        engine.scheduler.next_ahead(0.0)
