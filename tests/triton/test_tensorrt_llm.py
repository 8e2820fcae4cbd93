"""The TensorRT-LLM contract without a server: what a request asks of the engine and how its parts become outputs."""

from types import SimpleNamespace

import numpy as np
import pytest

from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import Grammar
from slipway.runtime.triton.exchange import Part
from slipway.runtime.triton.tensorrt_llm import TensorrtLlmExchange

TOKENIZER = SimpleNamespace(
    encode=lambda text, add_special_tokens: SimpleNamespace(ids=list(text.encode())),
    decode=lambda ids, skip_special_tokens: bytes(ids).decode(),
)


def exchange(rows=1, **inputs):
    """Each value for every row."""
    arrays = {name: np.array([value] * rows, object if isinstance(value[0], bytes) else None) for name, value in inputs.items()}
    return TensorrtLlmExchange(arrays, "", TOKENIZER)


def text(**inputs):
    return exchange(text_input=[b"ab"], max_tokens=[4], **inputs)


def ids(**inputs):
    return exchange(input_ids=[1, 2, 3], input_lengths=[2], request_output_len=[4], **inputs)


def params(asked):
    return vars(asked.calls[0].params)


@pytest.mark.parametrize(
    ("inputs", "sampling"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": [0.7]}, {"temperature": 0.0}),
        ({"top_k": [1], "top_p": [0.5]}, {"temperature": 0.0}),
        ({"top_k": [5]}, {"temperature": 1.0, "top_k": 5, "top_p": 1.0}),
        ({"top_p": [0.5], "temperature": [0.7]}, {"temperature": 0.7, "top_k": 0, "top_p": 0.5}),
        ({"runtime_top_k": [5], "top_p": [0.0]}, {"temperature": 1.0, "top_k": 5, "top_p": 1.0}),
    ],
)
def test_greedy_unless_top_k_or_top_p_says_otherwise(inputs, sampling):
    found = params(text(**inputs))
    assert {name: found.get(name) for name in sampling} == sampling and (found["top_k"] is None) == ("top_k" not in sampling)


def test_plain_parameters():
    found = params(text(min_length=[2], random_seed=[9], presence_penalty=[0.5], num_return_sequences=[3]))
    assert (found["min_tokens"], found["seed"], found["presence_penalty"], found["n"]) == (2, 9, 0.5, 3)


@pytest.mark.parametrize(
    ("inputs", "end"),
    [
        ({}, (False, [], [])),
        ({"end_id": [7]}, (True, [7], [])),
        ({"end_id": [-1]}, (True, [], [])),
        ({"stop_words": [b"ab", b"", b"c"]}, (False, [], ["ab", "c"])),
        ({"stop_words_list": [[97, 98, 99], [1, 3, -1]]}, (False, [97], ["bc"])),
    ],
)
def test_ends(inputs, end):
    found = params(text(**inputs))
    assert (found["ignore_eos"], found["stop_token_ids"], found["stop"]) == end


def test_bad_words_and_biases():
    found = params(text(bad_words=[b"ab"], embedding_bias_words=[b"a", b"ab"], embedding_bias_weights=[1.0, 2.0]))
    assert found["bad_words"] == ["ab"] and found["logit_bias"] == {97: 3.0, 98: 2.0}
    found = params(ids(bad_words_list=[[5, 6, 7, 0], [2, 3, -1, -1]], embedding_bias=[0.0, 0.5]))
    assert found["bad_words"] == [[5, 6], [7]] and found["logit_bias"] == {1: 0.5}


@pytest.mark.parametrize(
    ("inputs", "grammar"),
    [
        ({}, None),
        ({"guided_decoding_guide_type": [b""], "guided_decoding_guide": [b""]}, None),
        ({"guided_decoding_guide_type": [b"json"]}, Grammar.json_schema({})),
        ({"guided_decoding_guide_type": [b"json_schema"], "guided_decoding_guide": [b'{"type": "null"}']}, Grammar.json_schema({"type": "null"})),
        ({"guided_decoding_guide_type": [b"regex"], "guided_decoding_guide": [b"a+"]}, Grammar.regex("a+")),
        ({"guided_decoding_guide_type": [b"ebnf_grammar"], "guided_decoding_guide": [b'root ::= "a"']}, Grammar.ebnf('root ::= "a"')),
    ],
)
def test_guides(inputs, grammar):
    assert params(text(**inputs)).get("grammar") == params(ids(**inputs)).get("grammar") == grammar


def test_ids_are_cut_to_their_length():
    assert ids().calls[0].prompt == [1, 2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: text(beam_width=[2]), "beam_width: 2, expected 1; the engine samples and has no beam search"),
        (lambda: text(return_generation_logits=[True]), "return_log_probs gives log probabilities"),
        (lambda: exchange(text_input=[b"a"]), "max_tokens: not given"),
        (lambda: exchange(max_tokens=[1]), "0 of them given, expected exactly one"),
        (lambda: text(input_ids=[1]), "2 of them given, expected exactly one"),
        (lambda: text(seed=[1], random_seed=[2]), "random_seed: given beside seed"),
        (lambda: exchange(text_input=[b"\xff"], max_tokens=[1]), "text_input: byte 0 is not UTF-8"),
        (lambda: exchange(input_ids=[1], input_lengths=[0], max_tokens=[1]), "input_lengths: 0, expected 1 to 1"),
        (lambda: text(stop_words_list=[[1, 2], [2, 1]]), "word ends [2, 1]"),
        (lambda: text(stop_words_list=[[-5, 3], [2, -1]]), "stop_words_list: token ids [-5, 3], expected at least 0"),
        (lambda: text(num_return_sequences=[129]), "n: 129, expected a whole number in 1..128"),
        (lambda: text(guided_decoding_guide=[b"a"]), "guided_decoding_guide_type: '', expected one of json, json_schema"),
        (lambda: text(guided_decoding_guide_type=[b"regex"]), "guided_decoding_guide: not given, expected a text for regex"),
        (lambda: text(temperature=[-3.0]), "temperature: -3.0, expected a number of at least 0"),
        (lambda: text(top_p=[-0.5]), "top_p: -0.5, expected"),
        (lambda: text(top_k=[1], top_p=[7.0]), "top_p: 7.0, expected"),
        (lambda: text(embedding_bias_words=[b"a"]), "embedding_bias_weights: 0 weights, expected one for each of 1"),
    ],
)
def test_refused(asked, message):
    with pytest.raises(RequestError) as error:
        asked()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "answer"), [({}, "abc"), ({"exclude_input_in_output": [True]}, "c"), ({"stream": [True]}, "c")]
)
def test_text_answers(inputs, answer):
    (outputs,) = text(**inputs).responses([Part(0, 0, "c", [9])])
    assert outputs["text_output"].tolist() == [[answer.encode()]]


def test_id_answers():
    (outputs,) = ids(return_num_output_tokens=[True]).responses([Part(0, 0, "c", [9, 8])])
    assert outputs["output_ids"].tolist() == [[[1, 2, 9, 8]]] and outputs["sequence_length"].tolist() == [[4]]
    assert outputs["num_output_tokens"].tolist() == [[2]]
    (outputs,) = ids(streaming=[True]).responses([Part(0, 0, "c", [9])])
    assert outputs["output_ids"].tolist() == [[[9]]]


def test_log_probs():
    entries = [[SimpleNamespace(logprob=-0.5)], [SimpleNamespace(logprob=-1.0)]]
    (outputs,) = text(return_log_probs=[True]).responses([Part(0, 0, "cd", [9, 8], entries, "stop", -1.5)])
    assert outputs["cum_log_probs"].tolist() == [[-1.5]] and outputs["output_log_probs"].tolist() == [[[-0.5, -1.0]]]


FOUR = [Part(1, 1, "z", [3]), Part(0, 0, "w", [4, 5]), Part(0, 1, "x", [1]), Part(1, 0, "y", [2])]


def test_without_stream_all_sequences_of_all_rows_come_in_one_response():
    (outputs,) = exchange(2, text_input=[b"a"], max_tokens=[4], num_return_sequences=[2]).responses(FOUR)
    assert outputs["text_output"].tolist() == [[b"aw", b"ax"], [b"ay", b"az"]] and "batch_index" not in outputs
    asked = exchange(2, input_ids=[9], request_output_len=[4], num_return_sequences=[2], pad_id=[7], return_num_output_tokens=[True])
    (outputs,) = asked.responses(FOUR)
    assert outputs["output_ids"].tolist() == [[[9, 4, 5], [9, 1, 7]], [[9, 2, 7], [9, 3, 7]]]
    assert outputs["sequence_length"].tolist() == [[3, 2], [2, 2]] and outputs["num_output_tokens"].tolist() == [[2, 1], [1, 1]]


def test_without_stream_rows_of_a_batch_have_as_many_sequences():
    inputs = {"text_input": np.array([[b"a"], [b"b"]], object), "max_tokens": np.array([[4], [4]])}
    with pytest.raises(RequestError, match=r"num_return_sequences: \[1, 2\] in one batch"):
        TensorrtLlmExchange(inputs | {"num_return_sequences": np.array([[1], [2]])}, "", TOKENIZER)


def test_in_a_stream_every_sequence_of_every_row_answers_for_itself():
    asked = exchange(2, text_input=[b"ab"], max_tokens=[4], num_return_sequences=[2], stream=[True])
    outputs = asked.responses([Part(1, 0, "x", [1]), Part(1, 1, "y", [2])])
    assert len(asked.calls) == 2
    assert [(o["batch_index"].item(), o["sequence_index"].item()) for o in outputs] == [(1, 0), (1, 1)]
