"""The sampler against a sort-based reference in float64, its distribution, and its refusals."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slipway.runtime._native import core
from slipway.runtime.sampling import SamplingParams

VOCAB = 1500  # more than one chunk of row_scan.cpp, and no multiple of its lanes


def params(**options) -> SamplingParams:
    return SamplingParams(**options).with_defaults({})


def sample(logits, history=(1,), *, prompt_length=1, **options):
    call = {k: options.pop(k) for k in ("num_pending", "ending_tokens", "allowed", "seed", "sequence_index") if k in options}
    row = np.array(logits, np.float32)
    return core.Sampler(len(row)).sample_row(row, params(**options), list(history), prompt_length, **call)


def uniform(seed, stream, position):
    a, b, *_ = core.philox4x32([position, 0, stream, 0], [seed & 0xFFFFFFFF, seed >> 32])
    return ((a << 21) ^ (b >> 11)) * 2.0**-53


def probabilities(logits, p: SamplingParams):
    """-> (probability of each token after all filters, whether some mass ends so near a limit that rounding decides)."""
    scores = np.asarray(logits, np.float64) / p.temperature
    mass = np.exp(scores - scores.max())
    order = np.argsort(-scores, kind="stable")
    if p.top_k:
        mass[order[p.top_k :]] = 0
    near = False

    def shortest_prefix(order, share):
        nonlocal near
        sums = np.cumsum(mass[order]) / mass.sum()
        near |= bool(np.abs(sums - share).min() < 1e-4)
        mass[order[int(np.searchsorted(sums, share)) + 1 :]] = 0

    if p.typical_p < 1:
        kept = mass[mass > 0] / mass.sum()
        surprise = np.where(mass > 0, -np.log(np.maximum(mass, 1e-300) / mass.sum()), np.inf)
        distance = np.abs(surprise + np.sum(kept * np.log(kept)))
        best = np.sort(distance[np.isfinite(distance)])
        near |= bool(((np.diff(best) > 0) & (np.diff(best) < 1e-4)).any())
        shortest_prefix(np.argsort(np.round(distance, 9), kind="stable"), p.typical_p)
    if p.top_p < 1:
        shortest_prefix(order, p.top_p)
    if p.min_p:
        ratio = mass / mass.max()
        near |= bool(np.abs(ratio - p.min_p).min() < 1e-4)
        mass[ratio < p.min_p] = 0
    return mass / mass.sum(), near


@st.composite
def rows(draw, most=VOCAB):
    """Many ties: logits are eighths."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(1, most))
    return np.round(rng.normal(0, draw(st.sampled_from([0.5, 2, 8])), size) * 8).astype(np.float32) / 8


@settings(max_examples=300, deadline=None)
@given(
    rows(),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 3, 40, 400]),
    st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from([1.0, 0.95, 0.6, 0.1]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_draws_what_the_reference_draws(logits, temperature, top_k, typical_p, top_p, min_p, seed):
    chosen = dict(temperature=temperature, top_k=top_k, typical_p=typical_p, top_p=top_p, min_p=min_p)
    expected, near = probabilities(logits, params(**chosen))
    assume(not near)
    token = sample(logits, (1, 2, 3), seed=seed, sequence_index=7, **chosen).token
    below = np.cumsum(expected)[token] - expected[token]
    assert expected[token] > 0
    assert below - 1e-5 <= uniform(seed, 7, 2) <= below + expected[token] + 1e-5


@settings(max_examples=100, deadline=None)
@given(rows())
def test_greedy_takes_the_lowest_id_among_the_best(logits):
    assert sample(logits, temperature=0).token == int(np.argmax(logits))


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.7}, {"typical_p": 0.8}, {"min_p": 0.2}], ids=str)
def test_distribution(options):
    logits = np.random.default_rng(0).normal(0, 1.5, 12)
    expected, near = probabilities(logits, params(temperature=0.8, **options))
    assert not near
    draws = 20_000
    sampler, p = core.Sampler(12), params(temperature=0.8, **options)
    row = logits.astype(np.float32)
    counts = np.bincount([sampler.sample_row(row, p, [0], 1, seed=s).token for s in range(draws)], minlength=12)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi_squared = np.sum((counts[kept] - draws * expected[kept]) ** 2 / (draws * expected[kept]))
    freedom = kept.sum() - 1
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)


def test_philox_known_answers():  # Random123's kat_vectors
    assert core.philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert core.philox4x32([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert core.philox4x32(pi, [0xA4093822, 0x299F31D0]) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_draws_differ_by_seed_sequence_and_position_and_by_nothing_else():
    logits = np.zeros(VOCAB)
    draw = lambda history, **call: sample(logits, history, **call).token  # noqa: E731
    base = draw((1, 2, 3), seed=5)
    assert base == draw((1, 9, 9), seed=5)  # same position, other tokens
    assert len({base, draw((1, 2, 3), seed=6), draw((1, 2, 3), seed=5, sequence_index=1), draw((1, 2), seed=5)}) == 4


def test_penalties():
    logits = np.array([2.0, -2.0, 1.0, 0.5, 0.25])
    history = [0, 1, 2, 2, 3]  # prompt 0 1, output 2 2 3
    expected = logits.copy()
    for token, count in ((0, 0), (1, 0), (2, 2), (3, 1)):
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
        expected[token] -= 0.25 * count + 0.125 * (count > 0)
    options = dict(repetition_penalty=1.5, frequency_penalty=0.25, presence_penalty=0.125)
    for num_pending in range(4):  # draft tokens count like output, wherever the border is
        row = logits.astype(np.float32)
        core.Sampler(5).sample_row(row, params(temperature=0, **options), history, 2, num_pending)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_bias_bad_words_min_tokens_and_grammar():
    logits = [5.0, 4.0, 3.0, 2.0, 1.0]
    greedy = lambda history=(4,), **options: sample(logits, history, temperature=0, **options).token  # noqa: E731
    assert greedy(logit_bias={4: 10.0}) == 4
    assert greedy(bad_words=[[0]]) == 1
    assert greedy((4, 2, 3), bad_words=[[2, 3, 0]]) == 1
    assert greedy((4, 3, 2), bad_words=[[2, 3, 0]]) == 0
    assert greedy((0,), bad_words=[[1, 2, 3, 4, 0]]) == 0
    assert greedy((4, 1), min_tokens=2, ending_tokens=[0, 1]) == 2
    assert greedy((4, 1, 1), min_tokens=2, ending_tokens=[0, 1]) == 0
    assert greedy(allowed=np.array([0b11000], np.uint32)) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_leave_nothing_fail_alone(temperature):
    nothing = np.full(40, -np.inf)
    assert "no token" in sample(nothing, temperature=temperature).error
    for bad in (np.nan, np.inf):
        row = np.zeros(40)
        row[33] = bad
        assert "NaN or infinity" in sample(row, temperature=temperature).error
    error = sample(np.zeros(40), temperature=temperature, allowed=np.zeros(2, np.uint32)).error
    assert "bad words" in error and "grammar" in error
    nothing[17] = 1.0
    assert sample(nothing, temperature=temperature).token == 17
    assert sample([1.0, 2.0], temperature=1e-30).token == 1
    assert sample([1e30, 2e30], temperature=3e38).error is None


@settings(max_examples=50, deadline=None)
@given(rows(), st.integers(0, 60))
def test_logprobs_are_the_models_own(logits, count):
    drawn = sample(logits, temperature=0.5, top_k=2, logit_bias={0: -50.0}, repetition_penalty=1.2, logprobs=count, seed=3)
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    best = np.argsort(-wide, kind="stable")[:count]
    assert [token for token, _ in drawn.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in drawn.top], expected[best], atol=1e-4)
    assert drawn.logprob == pytest.approx(expected[drawn.token], abs=1e-4)


@pytest.mark.parametrize(
    ("field", "value"), [("logit_bias", {VOCAB: 1.0}), ("bad_words", [[VOCAB]]), ("stop_token_ids", [VOCAB]), ("logprobs", VOCAB + 1)]
)
def test_params_beyond_the_vocabulary_are_refused(field, value):
    assert core.check_params(params(**{field: value if field != "logprobs" else 1024}), 1000 if field == "logprobs" else VOCAB).startswith(field)
    assert core.check_params(params(), VOCAB) is None
