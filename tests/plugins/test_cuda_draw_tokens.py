"""Tokens drawn on a GPU are those that the host's sampler draws from the same logits."""

import functools

import numpy as np
import pytest
import torch
from emulated_gpu import SEEDS, TARGET, compile_emulated, run_emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_harness import make_batch
from nodes import call_node
from slipway.runtime._native import core
from slipway.runtime.sampling import SamplingParams

from slipway.compiler.target import Target
from slipway.plugins.draw_tokens import plugin as draw_tokens

pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation
SMALL, LARGE = 1500, 9001  # no multiples of a group's logits, the larger not of four either; it has groups enough that a threshold is searched, and logits too many
LEFT_TO_HOST, INVALID_LOGITS, INVALID_EDITS = -1, -2, -3
OPTIONS = {
    "greedy": dict(temperature=0),
    "plain": dict(temperature=1),
    "cold": dict(temperature=0.05),
    "top_k": dict(temperature=0.8, top_k=5),
    "large_top_k": dict(temperature=1.5, top_k=60),
    "top_p": dict(temperature=0.7, top_p=0.9),
    "min_p": dict(temperature=1.1, min_p=0.05),
    "all": dict(temperature=0.9, top_k=40, top_p=0.8, min_p=0.02),
    "penalties": dict(temperature=0.6, top_p=0.95, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "greedy_penalties": dict(temperature=0, repetition_penalty=1.8),
    "bias": dict(temperature=0.5, logit_bias={3: 9.0, 1499: -4.0, 700: 2.5}, bad_words=[[7, 11]], min_tokens=9),
}
HISTORY, PROMPT_LENGTH, ENDING = [3, 9, 700, 3, 3, 12, 1400, 7], 3, [1, 2]


def kernel_of(vocabulary):
    node = call_node(torch.ops.slipway.draw_tokens.default, torch.zeros(2, vocabulary), storage=torch.int32)
    return draw_tokens.PLUGIN.lower(node, TARGET)


@functools.cache
def lowered(vocabulary):
    return kernel_of(vocabulary), compile_emulated([kernel_of(vocabulary)])


def params_of(**options):
    return SamplingParams(**options).with_defaults({})


def drawn(logits, asked, seed=0, of=None, **options):
    """asked: SamplingParams a row, each with its seed. of: kernel and library. -> tokens, or what stands instead."""
    kernel, library = of or lowered(logits.shape[1])
    draws, edits = [], []
    for row, params in enumerate(asked):
        draw, own = core.draw_of(logits.shape[1], params, HISTORY, PROMPT_LENGTH, ENDING, params.seed or row)
        draw = bytearray(draw)
        draw[24:28] = np.int32(sum(map(len, edits)) // 16).tobytes()  # first_edit
        draws.append(bytes(draw))
        edits.append(own)
    as_bytes = lambda parts: np.frombuffer(b"".join(parts), np.uint8)  # noqa: E731
    batch = make_batch(logit_rows=np.arange(len(logits)), draws=as_bytes(draws), edits=as_bytes(edits))
    batch.num_tokens = len(logits)  # the harness counts rows in tokens
    out = torch.full((len(logits), 1), 77, dtype=torch.int32)
    run_emulated(library, kernel, [logits.clone()], [out], batch=batch, seed=seed, **options)
    return out[:, 0].tolist()


def sampled(logits, asked):
    sampler = core.Sampler(logits.shape[1])
    rows = [
        sampler.sample_row(row.numpy().copy(), params, HISTORY, PROMPT_LENGTH, ending_tokens=ENDING, seed=params.seed or number)
        for number, (row, params) in enumerate(zip(logits, asked))
    ]
    return [row.token if row.error is None else row.error for row in rows]


def random_logits(rows, vocabulary, spread=4.0, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize("name", OPTIONS)
def test_draws_what_the_host_draws(name, vocabulary):
    rows = 24
    logits = random_logits(rows, vocabulary, seed=len(name))
    asked = [params_of(**OPTIONS[name])] * rows
    assert drawn(logits, asked, captured_rows=32) == sampled(logits, asked)


def test_a_vocabulary_as_models_have():
    """Of 250 groups: as large a top_k as there is, and distributions that are flatter than a model's."""
    logits = random_logits(4, 32000, 2.0)
    asked = [params_of(temperature=1, top_k=219), params_of(temperature=1), params_of(temperature=0.7, top_p=0.6), params_of(temperature=0.8, min_p=0.02)]
    found = drawn(logits, asked)
    assert LEFT_TO_HOST not in found and found == sampled(logits, asked)
    assert drawn(logits[:1], [params_of(top_k=220)]) == [LEFT_TO_HOST]


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_with_different_wishes(seed):
    logits = random_logits(len(OPTIONS), LARGE, seed=seed)
    asked = [params_of(**options) for options in OPTIONS.values()]
    assert drawn(logits, asked, seed) == sampled(logits, asked)


@given(
    st.integers(0, 2**63 - 1), st.sampled_from([0.0, 0.01, 0.3, 1.0, 3.0]), st.sampled_from([0, 1, 2, 17, 130, 999]),
    st.sampled_from([0.001, 0.3, 0.9, 1.0]), st.sampled_from([0.0, 0.001, 0.2, 1.0]), st.sampled_from([0.1, 2.0, 20.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_filters_together(seed, temperature, top_k, top_p, min_p, spread):
    logits = random_logits(3, SMALL, spread, seed % 1000)
    logits[1] = logits[1].round()  # many are equal
    logits[2, 5:] = -torch.inf
    asked = [params_of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)] * 3
    assert drawn(logits, asked) == sampled(logits, asked)


def test_what_is_left_to_the_host():
    logits = random_logits(4, LARGE, 0.01)  # nearly even: nine tenths of the mass are more tokens than have room
    asked = [params_of(top_p=0.9), params_of(logprobs=0), params_of(typical_p=0.5), params_of(top_k=64)]  # of 71 groups
    assert drawn(logits, asked) == [LEFT_TO_HOST] * 4
    nothing = torch.full((1, SMALL), -torch.inf)
    assert drawn(nothing, [params_of(temperature=0)]) == [LEFT_TO_HOST]


def test_what_is_no_distribution_is_said():
    logits = random_logits(4, SMALL)
    logits[0, 1499], logits[1, 3], logits[2, 700] = torch.nan, torch.inf, 3e38
    biased = params_of(temperature=0, logit_bias={700: 3.4e38})
    asked = [params_of(), params_of(temperature=0, logit_bias={3: 1.0}), biased, params_of(temperature=0)]
    assert drawn(logits, asked)[:3] == [INVALID_LOGITS, INVALID_LOGITS, INVALID_EDITS]
    assert [str(error)[:5] for error in sampled(logits, asked)[:3]] == ["the m", "the m", "biase"]
    assert drawn(logits, asked)[3] == sampled(logits, asked)[3]


def test_ties_go_to_the_lowest_id():
    logits = torch.zeros(3, SMALL)
    logits[1, [130, 131, 900]] = 1
    logits[2, [1499, 128]] = 2
    assert drawn(logits, [params_of(temperature=0)] * 3) == [0, 130, 128]


def test_declines():
    node = call_node(torch.ops.slipway.draw_tokens.default, torch.zeros(2, (1 << 19) + 1), storage=torch.int32)
    assert draw_tokens.PLUGIN.supports(node, TARGET) == "a vocabulary of 524289: at most 524288"
    assert draw_tokens.PLUGIN.supports(node, Target("cpu", "avx2")) == "the runtime draws on a CPU"
