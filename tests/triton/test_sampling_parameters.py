"""vLLM's sampling parameters, by name: each is translated, refused with its reason, or unknown."""

import json

import pytest

from slipway.runtime.errors import RequestError
from slipway.runtime.triton import sampling_parameters


def read(**values):
    return sampling_parameters.read(json.dumps(values))[0]


@pytest.mark.parametrize(
    ("stated", "ours"),
    [
        ({"top_k": -1}, {"top_k": 0}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"include_stop_str_in_output": True}, {"include_stop": True}),
        ({"temperature": "0.5", "ignore_eos": "true"}, {"temperature": 0.5, "ignore_eos": True}),
        ({"max_tokens": 8.0}, {"max_tokens": 8}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": {5: 1.0}}),
        ({"seed": None, "best_of": 1, "guided_decoding": None}, {}),
    ],
)
def test_translated(stated, ours):
    assert read(**stated) == {"max_tokens": 16, **ours}


def test_nothing_stated_is_what_vllm_does():
    assert sampling_parameters.read("") == ({"max_tokens": 16}, {})


def test_options_go_to_submit():
    text = json.dumps({"priority": 2, "cache_salt": "tenant", "deadline_s": 1.5})
    assert sampling_parameters.read(text)[1] == {"priority": 2, "cache_salt": "tenant", "deadline": 1.5}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"max_token": 1}, "unknown key 'max_token'; did you mean 'max_tokens'?"),
        ({"quite_unknown": 1}, "unknown key 'quite_unknown'"),
        ({"max_tokens": 1.5}, "max_tokens: 1.5, expected an integer"),
        ({"n": True}, "n: True, expected an integer"),
        ({"temperature": "hot"}, "temperature: 'hot', expected a number"),
        ({"temperature": float("inf"), "n": float("inf")}, "n: inf, expected an integer"),
        ({"ignore_eos": 1}, "ignore_eos: 1, expected true or false"),
        ({"stop": [1]}, "stop: [1], expected a string or a list of strings"),
        ({"stop_token_ids": 3}, "stop_token_ids: 3, expected a list of token ids"),
        ({"logit_bias": [1]}, "logit_bias: [1], expected an object"),
        ({"use_beam_search": True}, "use_beam_search: True"),
        ({"guided_decoding": {"regex": "a"}}, "the engine does not do this"),
        ({"lora_name": "x"}, "lora_name"),
    ],
)
def test_refused(stated, message):
    with pytest.raises(RequestError) as error:
        read(**stated)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", '"a"'])
def test_not_an_object(text):
    with pytest.raises(RequestError, match="sampling_parameters"):
        sampling_parameters.read(text)
