"""The vLLM contract without a server: what a request asks of the engine and how its parts become outputs."""

from types import SimpleNamespace

import numpy as np
import pytest

from slipway.runtime.errors import RequestError
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.triton.exchange import Part
from slipway.runtime.triton.vllm import VllmExchange


def exchange(parameters="", **inputs):
    return VllmExchange({"text_input": np.array([b"ab"], object)} | {k: np.array([v]) for k, v in inputs.items()}, parameters)


def texts(outputs):
    return [text.decode() for text in outputs["text_output"]]


def test_parameters_beside_the_tensors_count():
    assert exchange('{"max_tokens": 3}').calls[0].params == SamplingParams(max_tokens=3)


def test_sampling_parameters_take_their_place():
    asked = exchange('{"max_tokens": 3}', sampling_parameters=b'{"n": 2}')
    assert asked.calls[0].params == SamplingParams(max_tokens=16, n=2)


def test_what_the_engine_would_refuse_is_refused_before_anything_is_made_for_it():
    with pytest.raises(RequestError, match="n: 1000000000000, expected a whole number in 1..128"):
        exchange('{"n": 1000000000000}')


@pytest.mark.parametrize(
    ("inputs", "prefix"),
    [
        ({}, "ab"),
        ({"exclude_input_in_output": False}, "ab"),
        ({"exclude_input_in_output": True}, ""),
        ({"stream": True}, ""),
        ({"stream": True, "exclude_input_in_output": True}, ""),
    ],
)
def test_the_prompt_is_repeated_as_vllm_does(inputs, prefix):
    (outputs,) = exchange(**inputs).responses([Part(0, 0, "c", [1])])
    assert texts(outputs) == [prefix + "c"]


def test_a_stream_cannot_repeat_the_prompt():
    with pytest.raises(RequestError, match="a stream carries new text only"):
        exchange(stream=True, exclude_input_in_output=False)


def test_logprobs_are_asked_of_the_engine_when_returned():
    assert exchange(return_cumulative_logprob=True).calls[0].params.logprobs == 0
    assert exchange('{"logprobs": 4}', return_logprobs=True).calls[0].params.logprobs == 4


def test_a_sequence_without_news_has_an_entry_and_keeps_its_end():
    asked = exchange('{"n": 2}', stream=True, return_finish_reason=True)
    (first,) = asked.responses([Part(0, 0, "x", [1], finish_reason="stop"), Part(0, 1, "y", [2])])
    (second,) = asked.responses([Part(0, 1, "z", [3], finish_reason="length")])
    assert (texts(first), list(first["finish_reason"])) == (["x", "y"], [b"stop", b"None"])
    assert (texts(second), list(second["finish_reason"])) == (["", "z"], [b"stop", b"length"])


def test_counts_and_logprobs():
    entry = SimpleNamespace(token_id=7, logprob=-0.5, rank=1, text="x")
    asked = exchange(**{f"return_{n}": True for n in ("logprobs", "cumulative_logprob", "num_input_tokens", "num_output_tokens")})
    (outputs,) = asked.responses([Part(0, 0, "x", [7], [[entry]], "stop", -0.5, 2)])
    assert outputs["logprobs"][0] == b'[{"7": {"logprob": -0.5, "rank": 1, "decoded_token": "x"}}]'
    assert outputs["cumulative_logprob"].tolist() == [-0.5]
    assert outputs["num_input_tokens"].tolist() == [2] and outputs["num_output_tokens"].tolist() == [1]
