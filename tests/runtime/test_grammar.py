"""Grammars: what they refuse, what they compile to, and what sequences under them say, whatever the schedule."""

import json
import re
import signal
import threading

import pytest
from fake_model import EOS, VOCAB, Engine, params
from hypothesis import given, settings
from hypothesis import strategies as st
from slipway.runtime import engine as loaded
from slipway.runtime import grammar_trial
from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import KEPT, LONGEST, Grammar, GrammarCompiler, library
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.vocabulary import Vocabulary
from toy_engine import BEGIN

LETTERS = Vocabulary([b"<eos>", *(bytes([0x60 + i]) for i in range(1, VOCAB))], [True] + [False] * (VOCAB - 1), False)
COMPILER = GrammarCompiler(LETTERS, VOCAB)


def say(*requests, **limits):
    """[(text, finish)] of (grammar, parameters), all at once, sequence by sequence."""
    engine = Engine(LETTERS, **limits)
    for id, (grammar, p) in enumerate(requests):
        assert engine.add(id, [1, 2, 3], p, grammar=grammar and COMPILER.compile(grammar)) is None
    engine.run()
    assert not [error for error in engine.errors.values() if error]
    return [(engine.texts[key], engine.finishes[key], engine.outputs[key]) for key in sorted(engine.finishes)]


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "[c-f]", "[^ab]", "."]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}"])).map(lambda two: f"({two[0]}){two[1]}"),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(PATTERNS, st.sampled_from([0.0, 1.0]), st.integers(0, 2**32), st.booleans())
def test_what_a_sequence_says_matches_its_pattern(pattern, temperature, seed, ignore_eos):
    """Alone, and the same in a crowd that is preempted, verifies drafts and shares prompts."""
    p = params(temperature=temperature, seed=seed, max_tokens=20, ignore_eos=ignore_eos)
    ((text, finish, tokens),) = say((Grammar.regex(pattern), p))
    if finish == "stop":
        assert re.fullmatch(pattern, text)
        assert (tokens[-1] == EOS) <= (not ignore_eos)
    else:
        assert len(tokens) == 20
    many = params(temperature=temperature, seed=seed, max_tokens=20, ignore_eos=ignore_eos, n=2, speculate_tokens=3)
    crowd = [(Grammar.regex(pattern), many), (None, many), (Grammar.regex("[abc]{9}"), many)]
    said = say(*crowd, num_blocks=12, max_sequences=5)
    assert said[0] == (text, finish, tokens) and len(said) == 6
    assert all(re.fullmatch("[abc]{9}", text) and finish == "stop" for text, finish, _ in said[4:])


def test_a_preempted_sequence_goes_on_where_it_was():
    engine = Engine(LETTERS, num_blocks=6, max_sequences=3)
    for id in range(3):
        engine.add(id, [id + 1] * 3, params(temperature=1, seed=id), grammar=COMPILER.compile(Grammar.regex("(abc){5}")))
    engine.run()
    assert {key: engine.texts[key] for key in engine.texts} == {(id, 0): "abc" * 5 for id in range(3)}
    assert sum(metrics.preemptions for metrics in engine.metrics.values()) > 0


def test_a_complete_grammar_ends_the_sequence_at_once():
    assert say((Grammar.regex("ab"), params()))[0] == ("ab", "stop", [1, 2])
    assert say((Grammar.regex("ab"), params(ignore_eos=True, min_tokens=9)))[0] == ("ab", "stop", [1, 2])


def test_an_end_is_allowed_where_the_grammar_may_stop_and_only_there():
    wanting = {"logit_bias": {EOS: 50.0, 5: 40.0}}
    assert say((Grammar.regex("ab(cd)*"), params(**wanting)))[0] == ("ab", "stop", [1, 2, EOS])
    assert say((Grammar.regex("ab(cd)*"), params(min_tokens=3, **wanting)))[0] == ("abcd", "stop", [1, 2, 3, 4, EOS])
    assert say((Grammar.regex("ab(cd)*"), params(ignore_eos=True, max_tokens=6, **wanting)))[0] == ("abcdcd", "length", [1, 2, 3, 4, 3, 4])
    stop_id = params(stop_token_ids=[5], ignore_eos=True, **wanting)  # no letter of the grammar
    assert say((Grammar.regex("ab(cd)*"), stop_id))[0] == ("ab", "stop", [1, 2, 5])


def test_stop_strings_end_a_grammar_early():
    assert say((Grammar.regex("abcabc"), params(stop=["ca"])))[0] == ("ab", "stop", [1, 2, 3, 1])


def test_drafts_that_follow_the_grammar_are_accepted():
    engine = Engine(LETTERS)
    engine.add(0, [1, 2, 3] * 4, params(speculate_tokens=3), grammar=COMPILER.compile(Grammar.regex("(abc){6}")))
    engine.run()
    assert engine.texts[0, 0] == "abc" * 6 and engine.metrics[0, 0].accepted_tokens >= 6
    assert len(engine.steps) < 14


def test_special_tokens_by_name(toy):
    with loaded.Engine.load(toy()) as engine:
        completion = engine.generate([[1]], SamplingParams(grammar=Grammar.ebnf('start: "a" <begin> "b"')))[0]
        assert completion.token_ids == [ord("a"), BEGIN, ord("b")]
        with pytest.raises(RequestError, match="grammar"):
            engine.submit([1], SamplingParams(grammar=Grammar.ebnf("start: <no_such_token>")))


def test_a_grammar_that_cannot_be_followed_fails_its_request_alone(toy):
    """No token spells z."""
    with loaded.Engine.load(toy()) as engine:
        pieces = [b"" if token == ord("z") else bytes([token]) for token in range(256)]
        engine._grammars = GrammarCompiler(Vocabulary(pieces, [False] * 256, False), engine.manifest.plan.vocab_size)
        stuck = engine.submit([1], SamplingParams(grammar=Grammar.regex("az")))
        others = [engine.submit([1], SamplingParams(grammar=Grammar.regex("[ab]{20}"), temperature=1)) for _ in range(4)]
        with pytest.raises(RequestError, match="grammar could not be followed"):
            stuck.result()
        assert all(re.fullmatch("[ab]{20}", other.result().text) for other in others)


def test_characters_of_several_tokens(toy):
    """The toy's tokens are bytes, and it knows no words: only the masks lead it."""
    texts = ["é☃", "🎉🎉", "\\ \"quoted\"\n\t", "a|b)*", "\x7f", "日本"]
    with loaded.Engine.load(toy()) as engine:
        for text in texts:
            completion = engine.generate([[1, 2]], SamplingParams(grammar=Grammar.choice([text]), temperature=1))[0]
            assert (completion.text, completion.finish_reason) == (text, "stop")
        seeds = [SamplingParams(grammar=Grammar.choice(texts), temperature=5, seed=seed) for seed in range(40)]
        said = {completion.text for completion in engine.generate([[1]] * 40, seeds)}
        assert said <= set(texts) and len(said) > 2
        (anything,) = engine.generate([[1]], SamplingParams(grammar=Grammar.regex("[é☃]{30}"), temperature=5, seed=1))
        assert re.fullmatch("[é☃]{30}", anything.text)


REFUSED = {
    "not a regex": (lambda: Grammar.regex("(a"), "unclosed group"),
    "a regex with look-ahead": (lambda: Grammar.regex("(?=a)b"), "look-around"),
    "not JSON": (lambda: Grammar.json_schema("{"), "not JSON"),
    "deep JSON": (lambda: Grammar.json_schema("[" * 200_000), "not JSON"),
    "not a schema": (lambda: Grammar.json_schema("3"), "a JSON schema"),
    "an unknown type": (lambda: Grammar.json_schema({"type": "foo"}), "Invalid type"),
    "a schema elsewhere": (lambda: Grammar.json_schema({"$ref": "http://example.com/schema"}), "does not fetch"),
    "not serializable": (lambda: Grammar.json_schema({"const": object()}), "not JSON"),
    "an unknown rule": (lambda: Grammar.ebnf("start: foo"), "unknown name"),
    "an unknown rule in GBNF": (lambda: Grammar.ebnf("root ::= foo"), "not GBNF"),
    "deep GBNF": (lambda: Grammar.ebnf("root ::= " + "(" * 50_000), "not GBNF"),
    "deep Lark": (lambda: Grammar.ebnf("start: " + "(" * 50_000 + '"a"' + ")" * 50_000), "too deeply nested"),
    "NUL": (lambda: Grammar.regex("a\0b"), "without NUL"),
    "half a character": (lambda: Grammar.regex("\ud800"), "surrogates"),
    "no choice": (lambda: Grammar.choice([]), "a list of non-empty strings"),
    "too long": (lambda: Grammar.regex("a" * (LONGEST + 1)), f"at most {LONGEST}"),
    "too much": (lambda: Grammar.ebnf("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "a"'), "too big"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name):
    make, message = REFUSED[name]
    with pytest.raises(RequestError) as error:
        COMPILER.compile(make())
    text = str(error.value)
    assert text.startswith("grammar: ") and message in text and "\n" not in text and len(text) < 400


def test_an_engine_without_a_tokenizer_has_no_grammars():
    with pytest.raises(RequestError, match="no tokenizer"):
        GrammarCompiler(Vocabulary([], [], False), VOCAB).compile(Grammar.regex("a"))


ENDLESS = "start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{i}}}/" for i in range(1, 30))
DEEP = "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(12_000)) + 'a12000: "ab"'


@pytest.mark.parametrize(("grammar", "message"), [(ENDLESS, "not compiled within 2 s"), (DEEP, "too deep or too large to compile")])
def test_a_grammar_that_would_end_the_process_is_refused(grammar, message):
    """The width of an intersection is an exponent of llguidance's work, and its stack grows with a grammar's depth."""
    with pytest.raises(RequestError, match=message):
        COMPILER.compile(Grammar.ebnf(grammar))
    assert say((Grammar.regex("aab"), params()))[0][0] == "aab"


def test_a_trial_that_stands_still_is_given_up(monkeypatch):
    trial = grammar_trial.Trial()
    monkeypatch.setattr(grammar_trial, "PATIENCE_S", 1)
    trial.run(library(), {}, 256, "regex", "a")
    trial._process.send_signal(signal.SIGSTOP)
    with pytest.raises(RequestError, match="not compiled within 1 s"):
        trial.run(library(), {}, 256, "regex", "a")
    monkeypatch.undo()
    trial.run(library(), {}, 256, "regex", "a")
    trial._process.kill()
    trial._process.wait()
    trial.run(library(), {}, 256, "regex", "a")
    trial.close()


def test_rules_as_deep_as_the_trial_allows():
    chain = "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(800)) + 'a800: "ab"'
    assert say((Grammar.ebnf(chain), params()))[0] == ("ab", "stop", [1, 2])


def test_compiled_grammars_are_kept_and_shared_by_threads():
    compiler, made = GrammarCompiler(LETTERS, VOCAB), []
    threads = [threading.Thread(target=lambda: made.append(compiler.compile(Grammar.regex("a+b")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and compiler.compile(Grammar.regex("a+b")) in made
    for i in range(KEPT):
        compiler.compile(Grammar.regex("a" * (i + 1)))
    assert compiler.compile(Grammar.regex("a+b")) not in made


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "array", "items": {"type": "integer"}}, '{"enum": [1, null, "é\\n"]}'])
def test_json_of_a_schema(toy, schema):
    with loaded.Engine.load(toy()) as engine:
        crowd = [SamplingParams(grammar=Grammar.json_schema(schema), temperature=1, seed=seed, max_tokens=200) for seed in range(20)]
        for completion in engine.generate([[1]] * 20, crowd):
            if completion.finish_reason == "stop":
                json.loads(completion.text)
            assert "\n\n" not in completion.text


def test_the_field_takes_a_grammar():
    with pytest.raises(RequestError, match="expected a Grammar"):
        SamplingParams(grammar="a+")
