"""Both contracts on the real tritonserver, with the clients that people use."""

import json
import re
import socket
import time

import numpy as np
import pytest
import tritonclient.grpc as grpc
from clients import Stream, complete, generate, metric, open_generate, together, tensor, vllm_inputs, wait_for
from tritonclient.utils import InferenceServerException

from slipway.runtime.triton.attendant import METRICS_EVERY, PERIOD_S

GREEDY = {"temperature": 0, "max_tokens": 24}
LONG = {"n": 16, "max_tokens": 1900, "ignore_eos": True}  # seconds, on any machine


@pytest.fixture(scope="module")
def greedy(server):
    """What the demo engine says after "def "."""
    status, reply = generate(server, "demo", {"text_input": "def ", "exclude_input_in_output": True, **GREEDY})
    assert status == 200
    return reply["text_output"]


def test_every_model_is_ready(server):
    client = grpc.InferenceServerClient(server.grpc)
    assert all(client.is_model_ready(name) for name in ("demo", "ensemble", "tensorrt_llm", "tensorrt_llm_bls"))
    client.close()


def test_grpc_stream_equals_the_whole_answer(server, greedy):
    assert complete(server, "demo", vllm_inputs(**GREEDY)) == greedy


def test_generate_stream_equals_the_whole_answer(server):
    body = {"text_input": "def ", "temperature": 0, "max_tokens": 400, "ignore_eos": True}
    whole = generate(server, "demo", body | {"exclude_input_in_output": True})[1]["text_output"]
    status, events = generate(server, "demo", body | {"stream": True}, stream=True)
    assert status == 200 and "".join(event["text_output"] for event in events) == whole
    assert len(events) > 1  # fewer than tokens: those that wait together go together


def test_an_answer_repeats_the_prompt_by_default(server, greedy):
    assert generate(server, "demo", {"text_input": "def ", **GREEDY})[1]["text_output"] == "def " + greedy


def test_additional_outputs(server):
    wanted = ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")
    body = {"text_input": "def ", **{f"return_{name}": True for name in wanted}, **GREEDY}
    reply = generate(server, "demo", body)[1]
    tokens = json.loads(reply["logprobs"])
    assert reply["finish_reason"] in ("length", "stop") and len(tokens) == reply["num_output_tokens"]
    best = [entry["logprob"] for token in tokens for entry in token.values()]
    assert reply["cumulative_logprob"] == pytest.approx(sum(best), rel=1e-4) and reply["num_input_tokens"] > 0


def test_several_answers(server):
    body = {"text_input": "def ", "exclude_input_in_output": True, "n": 3, "seed": 1, "max_tokens": 8}
    assert len(generate(server, "demo", body)[1]["text_output"]) == 3
    with Stream(server, "demo", vllm_inputs(n=3, seed=1, max_tokens=8)) as stream:
        assert all(response["text_output"].shape == (3,) for response in stream)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_generate_takes_several_answers_and_batches(server, model, greedy):
    several = {"text_input": "def ", "max_tokens": 24, "num_return_sequences": 3, "return_log_probs": True}
    status, reply = generate(server, model, several)
    assert status == 200 and reply["text_output"] == ["def " + greedy] * 3 and len(reply["cum_log_probs"]) == 3
    status, reply = generate(server, model, {"text_input": [["def "], ["def "]], "max_tokens": [[24], [8]]})
    assert status == 200 and reply["text_output"][0] == "def " + greedy and len(reply["text_output"]) == 2
    status, events = generate(server, model, several | {"stream": True}, stream=True)
    texts = ["".join(e["text_output"] for e in events if e["sequence_index"] == index) for index in range(3)]
    assert status == 200 and texts == [greedy] * 3


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_tensorrt_llm_text(server, model, greedy):
    body = {"text_input": "def ", "max_tokens": 24}
    assert generate(server, model, body)[1]["text_output"] == "def " + greedy
    events = generate(server, model, body | {"stream": True}, stream=True)[1]
    assert "".join(event["text_output"] for event in events) == greedy
    inputs = {"text_input": [["def "]], "max_tokens": [[24]], "stream": [[True]]}
    assert complete(server, model, inputs) == greedy


def test_tensorrt_llm_ids(server):
    inputs = {"input_ids": [[5, 6, 7, 8]], "input_lengths": [[3]], "request_output_len": [[8]], "streaming": [[True]]}
    with Stream(server, "tensorrt_llm", inputs) as stream:
        streamed = np.concatenate([response["output_ids"][0, 0] for response in stream])
    whole = inputs | {"streaming": [[False]], "return_log_probs": [[True]]}
    with Stream(server, "tensorrt_llm", whole) as stream:
        (response,) = stream
    assert response["output_ids"].tolist() == [[[5, 6, 7, *streamed]]]
    assert response["sequence_length"].tolist() == [[3 + len(streamed)]]
    assert response["cum_log_probs"][0, 0] == pytest.approx(response["output_log_probs"].sum(), rel=1e-4)


def test_structured_outputs(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
    asked = {"structured_outputs": json.dumps({"json": schema | {"additionalProperties": False}}), "temperature": 0.5, "seed": 3, "max_tokens": 200}
    answer = json.loads(complete(server, "demo", vllm_inputs(**asked)))
    assert isinstance(answer["a"], int) and answer["b"] in ("x", "y")
    inputs = {"text_input": [["x = "]], "max_tokens": [[20]], "guided_decoding_guide_type": [["regex"]], "guided_decoding_guide": [["[0-9]{3}!"]]}
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert re.fullmatch("[0-9]{3}!", complete(server, model, inputs | {"exclude_input_in_output": [[True]]}))


def test_a_batch_gets_an_answer_a_row(server, greedy):
    inputs = {"text_input": [["def "], ["def "]], "max_tokens": [[24], [8]], "exclude_input_in_output": [[True], [True]]}
    with Stream(server, "ensemble", inputs) as stream:
        (response,) = stream
    rows = [text.decode() for text in response["text_output"][:, 0]]
    assert rows[0] == greedy and greedy.startswith(rows[1]) and len(rows[1]) < len(greedy)


def test_32_streams_at_once(server, greedy):
    texts = together([lambda: complete(server, "demo", vllm_inputs(**GREEDY))] * 16 + [
        lambda: "".join(e["text_output"] for e in generate(server, "ensemble", STREAMED, stream=True)[1])
    ] * 16)
    assert texts == [greedy] * 32


STREAMED = {"text_input": "def ", "max_tokens": 24, "stream": True}


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("demo", {"text_input": "a", "temprature": 1}, "unknown key 'temprature'; did you mean 'temperature'?"),
        ("demo", {"text_input": "a", "max_tokens": "many"}, "max_tokens: 'many', expected an integer"),
        ("demo", {"text_input": "a", "temperature": -1}, "temperature"),
        ("demo", {"text_input": "a", "max_tokens": 0}, "max_tokens"),
        ("demo", {"text_input": "a", "sampling_parameters": "{"}, "not JSON"),
        ("demo", {"text_input": "a", "sampling_parameters": "[1]"}, "a JSON object"),
        ("demo", {"text_input": "a", "sampling_parameters": json.dumps({"structured_outputs": {"regex": "(a"}})}, "unclosed group"),
        ("ensemble", {"text_input": "a", "max_tokens": 1, "guided_decoding_guide_type": "poem"}, "guided_decoding_guide_type: 'poem'"),
        ("demo", {"text_input": "a", "use_beam_search": True}, "use_beam_search"),
        ("demo", {"text_input": "a", "stream": True, "exclude_input_in_output": False}, "exclude_input_in_output"),
        ("demo", {"text_input": "a " * 100_000}, ""),
        ("demo", {"text_input": ["a", "b"]}, ""),
        ("demo", {}, ""),
        ("ensemble", {"text_input": "a"}, "max_tokens"),
        ("ensemble", {"max_tokens": 4}, "text_input, input_ids: 0 of them given"),
        ("ensemble", {"text_input": "a", "max_tokens": 4, "beam_width": 2}, "no beam search"),
        ("ensemble", {"text_input": "a", "max_tokens": 4, "return_context_logits": True}, "return_log_probs"),
        ("ensemble", {"text_input": "a", "max_tokens": 4, "top_k": 2, "runtime_top_k": 2}, "given beside"),
        ("tensorrt_llm_bls", {"text_input": "a", "max_tokens": 4, "beam_width": 2}, "no beam search"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(server, model, body, message):
    status, reply = generate(server, model, body)
    assert 400 <= status < 500 and message in reply["error"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("demo", {"text_input": [b"\xff\xfe"]}, "not UTF-8"),
        ("demo", {"text_input": ["a"], "sampling_parameters": ['{"stop": 3}']}, "stop: 3"),
        ("tensorrt_llm", {"input_ids": [[1]], "input_lengths": [[2]], "request_output_len": [[4]]}, "input_lengths"),
        ("tensorrt_llm", {"input_ids": [[-5]], "input_lengths": [[1]], "request_output_len": [[4]]}, "-5"),
        ("ensemble", {"text_input": [["a"]], "max_tokens": [[4]], "stop_words_list": [[[1], [9]]]}, "word ends"),
    ],
)
def test_a_bad_stream_is_refused_with_its_reason(server, model, inputs, message):
    with Stream(server, model, inputs) as stream, pytest.raises(InferenceServerException, match=message):
        list(stream)


def test_bad_requests_do_not_disturb_a_good_one(server, greedy):
    bad = [lambda: generate(server, "demo", {"text_input": "a", "n": "x"})] * 20
    assert together([lambda: complete(server, "demo", vllm_inputs(**GREEDY)), *bad])[0] == greedy


def endless(model):
    """A long request in the model's contract: (JSON body, tensors, the field that asks for a stream)."""
    if model == "demo":
        long = LONG | {"n": 8}
        return {"text_input": "def ", **long}, vllm_inputs(**long), "stream"
    prompt = {"input_ids": [5], "input_lengths": 1} if model == "tensorrt_llm" else {"text_input": "def "}
    names = ("request_output_len", "streaming") if model == "tensorrt_llm" else ("max_tokens", "stream")
    body = prompt | {names[0]: 1900, "end_id": -1, "num_return_sequences": 8}
    tensors = {name: [value if isinstance(value, list) else [value]] for name, value in body.items()}
    return body, tensors | {names[1]: [[True]]}, names[1]


def cancel_a_grpc_stream(server, model):
    stream = Stream(server, model, endless(model)[1])
    next(iter(stream))
    stream.close(cancel=True)


def leave_generate_stream(server, model):
    body, _, stream = endless(model)
    connection, response = open_generate(server, model, body | {stream: True}, stream=True)
    assert response.readline().startswith(b"data: ")
    response.close()
    connection.close()


def leave_generate(server, model):
    body = json.dumps(endless(model)[0]).encode()
    with socket.create_connection(server.http.split(":")) as connection:
        head = f"POST /v2/models/{model}/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        holder = "demo" if model == "demo" else "ensemble"
        wait_for(lambda: metric(server, "slipway_sequences_running", holder), "the request runs")


def unnoticed(why):
    return pytest.mark.xfail(strict=True, raises=Finished, reason=why)


class Finished(Exception):
    """The engine went on to the end for nobody."""


ALIAS = unnoticed("Triton does not hand the cancellation of an ensemble on to its steps")
PLAIN = unnoticed("Triton does not watch an HTTP connection while a whole answer is under way")


@pytest.mark.parametrize(
    ("model", "leave"),
    [
        *((model, way) for model in ("demo", "ensemble") for way in (cancel_a_grpc_stream, leave_generate_stream)),
        *(pytest.param(model, leave_generate, marks=PLAIN) for model in ("demo", "ensemble")),
        *(
            pytest.param(model, way, marks=ALIAS)
            for model in ("tensorrt_llm", "tensorrt_llm_bls")
            for way in (cancel_a_grpc_stream, leave_generate_stream)
        ),
    ],
)
def test_a_client_that_leaves_frees_the_engine(server, model, leave):
    holder = "demo" if model == "demo" else "ensemble"
    names = ("slipway_requests_cancelled_total", "slipway_requests_finished_total")
    time.sleep(2 * METRICS_EVERY * PERIOD_S)  # what ran before is counted by now
    assert metric(server, "slipway_sequences_running", holder) == 0
    before = [metric(server, name, holder) for name in names]
    leave(server, model)
    wait_for(lambda: [metric(server, name, holder) for name in names] != before, "the request has ended", 60)
    assert metric(server, "slipway_sequences_running", holder) == 0
    if metric(server, names[0], holder) == before[0]:
        raise Finished


def test_a_tensorrt_llm_client_stops_its_request_by_id(server):
    inputs = {"input_ids": [[5]], "input_lengths": [[1]], "request_output_len": [[1900]], "end_id": [[-1]]}
    asked = inputs | {"streaming": [[True]], "num_return_sequences": [[32]]}  # many seconds: the other stream may be slow to open
    with Stream(server, "tensorrt_llm", asked, request_id="7") as stream:
        responses = iter(stream)
        next(responses)
        with Stream(server, "tensorrt_llm", inputs | {"stop": [[True]]}, request_id="7") as stop:
            list(stop)
        assert sum(response["output_ids"].size for response in responses) < 32 * 1800


def test_metrics(server, greedy):
    before = metric(server, "slipway_generated_tokens_total") or 0
    generate(server, "demo", {"text_input": "def ", **GREEDY})
    wait_for(lambda: (metric(server, "slipway_generated_tokens_total") or 0) > before, "tokens are counted")
    assert metric(server, "slipway_kv_blocks_free") > 0


def test_plain_infer_of_a_decoupled_model_is_refused(server):
    client = grpc.InferenceServerClient(server.grpc)
    with pytest.raises(InferenceServerException, match="decoupled"):
        client.infer("demo", [tensor("text_input", ["a"])])
    client.close()
