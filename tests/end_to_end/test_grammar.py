"""The demo model under grammars, greedy and not, beside requests without: JSON is valid, and the others pay nothing."""

import json
import re

import pytest
from slipway.runtime.engine import Engine, Grammar, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
}


def check_person(text):
    person = json.loads(text)
    assert list(person) == ["name", "age", "tags", "next"]
    assert isinstance(person["name"], str) and len(person["name"]) <= 12
    assert type(person["age"]) is int and 0 <= person["age"] <= 150
    assert set(person["tags"]) <= {"a", "b", "c"} and len(person["tags"]) <= 3
    assert person["next"] in (None, True, False)


@pytest.fixture(scope="module")
def engine(build):
    with Engine.load(build("demo-llama/cpu-bf16")) as engine:
        yield engine


@pytest.mark.parametrize("speculate_tokens", [0, 4])
def test_json_is_always_valid(engine, speculate_tokens):
    grammar = Grammar.json_schema(SCHEMA)
    for temperature in (0.0, 1.0):
        crowd = []
        for seed in range(48):
            p = SamplingParams(temperature=temperature, seed=seed, max_tokens=400, speculate_tokens=speculate_tokens, grammar=grammar)
            crowd.append((f"person{seed} = ", p))
            if seed % 3 == 0:
                crowd.append((f"def f{seed}(", SamplingParams(temperature=temperature, seed=seed, max_tokens=60, ignore_eos=True)))
        completions = engine.generate([prompt for prompt, _ in crowd], [p for _, p in crowd])
        for (_, p), completion in zip(crowd, completions, strict=True):
            if p.grammar:
                assert completion.finish_reason == "stop"
                check_person(completion.text)
            else:
                assert completion.finish_reason == "length" and len(completion.token_ids) == 60


def test_sequences_of_one_request_go_their_own_ways(engine):
    p = SamplingParams(temperature=1.5, seed=1, n=8, max_tokens=100, grammar=Grammar.regex("[a-z]{3,9}-[0-9]{2,5}!"))
    texts = {completion.text for completion in engine.generate("x = ", p)}
    assert all(re.fullmatch(p.grammar.text, text) for text in texts) and len(texts) > 4


def test_characters_that_span_tokens(engine):
    for text in ("é☃", "日本語", "🎉 done"):
        assert engine.generate("x = ", SamplingParams(temperature=0, grammar=Grammar.choice([text])))[0].text == text
