"""vLLM's sampling parameters, by name: each is translated, refused with its reason, or unknown."""

import json

import pytest

from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import Grammar
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
        ({"seed": 2**53 + 1}, {"seed": 2**53 + 1}),
        ({"seed": str(2**64 - 1)}, {"seed": 2**64 - 1}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": {5: 1.0}}),
        ({"seed": None, "best_of": 1, "guided_decoding": None}, {}),
    ],
)
def test_translated(stated, ours):
    assert read(**stated) == {"max_tokens": 16, **ours}


@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
@pytest.mark.parametrize(
    ("stated", "grammar"),
    [
        ({"json": {"type": "integer"}, "backend": "xgrammar"}, Grammar.json_schema({"type": "integer"})),
        ({"json": '{"type": "integer"}'}, Grammar.json_schema({"type": "integer"})),
        ({"json_object": True, "disable_any_whitespace": True}, Grammar.json_schema({"type": "object"}, "")),
        ({"json": {}, "whitespace_pattern": "[ ]"}, Grammar.json_schema({}, "[ ]")),
        ({"regex": "a+", "json": None, "json_object": False, "disable_fallback": True}, Grammar.regex("a+")),
        ({"choice": ["a", "b"]}, Grammar.choice(["a", "b"])),
        ({"grammar": 'root ::= "a"'}, Grammar.ebnf('root ::= "a"')),
        ({"backend": "guidance"}, None),
    ],
)
def test_structured_outputs(name, stated, grammar):
    """As an object, and as the JSON text of one that Triton's vLLM backend expects."""
    assert read(**{name: stated})["grammar"] == read(**{name: json.dumps(stated)})["grammar"] == grammar


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
        ({"n": 10**400, "temperature": 10**400}, "temperature: 1000"),
        ({"temperature": "hot"}, "temperature: 'hot', expected a number"),
        ({"temperature": float("inf"), "n": float("inf")}, "n: inf, expected an integer"),
        ({"ignore_eos": 1}, "ignore_eos: 1, expected true or false"),
        ({"stop": [1]}, "stop: [1], expected a string or a list of strings"),
        ({"stop_token_ids": 3}, "stop_token_ids: 3, expected a list of token ids"),
        ({"logit_bias": [1]}, "logit_bias: [1], expected an object"),
        ({"use_beam_search": True}, "use_beam_search: True"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs: regex, choice, expected one of json, "),
        ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs: structural_tag, expected one of json, "),
        ({"structured_outputs": "{"}, "not JSON"),
        ({"structured_outputs": "[]"}, "structured_outputs: '[]', expected an object"),
        ({"structured_outputs": {"choice": "a"}}, "a list of non-empty strings"),
        ({"structured_outputs": {"regex": 3}}, "grammar: 3, expected text"),
        ({"structured_outputs": {"regex": "a"}, "guided_decoding": {"regex": "a"}}, "given beside guided_decoding"),
        ({"lora_name": "x"}, "lora_name"),
    ],
)
def test_refused(stated, message):
    with pytest.raises(RequestError) as error:
        read(**stated)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "3", '"a"', "[" * 200_000, "1" * 5_000])
def test_not_an_object(text):
    with pytest.raises(RequestError, match="sampling_parameters"):
        sampling_parameters.read(text)
