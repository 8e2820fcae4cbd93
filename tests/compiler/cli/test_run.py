"""`slipway run` and `slipway chat`: the answer alone on stdout, all else on stderr."""

import json
import sys

import pytest
from slipway.runtime.errors import EngineError
from slipway.runtime.grammar import Grammar


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_stdout_is_the_completion_alone(cli, fake, stream):
    outcome = cli("run", "engine", "Say hello", stream)
    assert (outcome.code, outcome.out) == (0, "Hello world\n")
    assert outcome.err == "3 tokens; the first after 10 ms, then 50 tokens/s\n"
    assert fake.prompts == ["Say hello"] and fake.sampling == [{}] and fake.closed


def test_options_reach_the_engine(cli, fake):
    cli("run", "engine", "x", "--max-tokens", 5, "--temperature", 0, "--stop", "a", "--stop", "b", "--seed", 7, "--threads", 2)
    assert fake.sampling == [{"max_tokens": 5, "temperature": 0.0, "stop": ["a", "b"], "seed": 7}]
    ((path, options),) = fake.loaded
    assert str(path) == "engine" and options == {"threads": 2, "kv_tokens": None, "verify": True, "emulate": None}


def test_a_prompt_from_stdin(cli, fake):
    cli("run", "engine", "-", input=b"line 1\nline 2\n")
    assert fake.prompts == ["line 1\nline 2\n"]


def test_stdin_that_is_no_text(cli, fake):
    outcome = cli("run", "engine", "-", input=b"a\xff")
    assert (outcome.code, outcome.err) == (2, "stdin: byte 1 is not UTF-8; expected text\n")


def test_a_chat_prompt(cli, fake):
    cli("run", "engine", "hi", "--chat", "--system", "be brief")
    assert fake.prompts == ["<system>be brief<user>hi"]


def test_json(cli, fake):
    value = json.loads(cli("run", "engine", "hi", "--json").out)
    metrics = {"queue_s": 0.001, "ttft_s": 0.01, "total_s": 0.05, "inter_token_s": 0.02, "preemptions": 0}
    assert value == {"text": "Hello world", "token_ids": [0, 1, 2], "finish_reason": "stop", "metrics": metrics}


def test_grammars_reach_the_engine(cli, fake, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    cli("run", "engine", "x", "--json-schema", tmp_path / "schema.json")
    cli("run", "engine", "x", "--regex", "a+")
    assert fake.sampling == [{"grammar": Grammar.json_schema({"type": "integer"})}, {"grammar": Grammar.regex("a+")}]


def test_grammars_that_are_none(cli, fake, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_bytes(b"{\xff")
    assert cli("run", "engine", "x", "--json-schema", schema).err == f"{schema}: byte 1 is not UTF-8; expected text\n"
    schema.write_text("{")
    assert cli("run", "engine", "x", "--json-schema", schema).err.startswith("grammar: not JSON")
    outcome = cli("run", "engine", "x", "--json-schema", schema, "--regex", "a")
    assert outcome.code == 2 and "--json-schema and --regex exclude each other." in outcome.err


def test_ctrl_c_cancels_the_request(cli, fake):
    fake.interrupt_after = 1
    outcome = cli("run", "engine", "hi")
    assert (outcome.code, outcome.out, outcome.err) == (130, "Hel", "interrupted\n")
    assert fake.requests[0].cancelled and fake.closed


def test_an_engine_that_does_not_load(cli, fake):
    fake.load_error = EngineError("engine", "made for amx", "an avx2 engine", "build it here")
    outcome = cli("run", "engine", "hi")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "engine: made for amx, expected an avx2 engine; build it here\n")


def test_a_conversation_keeps_its_history_until_reset(cli, fake):
    outcome = cli("chat", "engine", "--system", "S", input=b"one\ntwo\n/reset\n\nthree\n/exit\nfour\n")
    assert outcome.code == 0
    assert outcome.out == "Hello world\n" * 3
    assert fake.prompts == ["<system>S<user>one", "<system>S<user>one<assistant>Hello world<user>two", "<system>S<user>three"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(cli, fake):
    fake.interrupt_after = 2
    outcome = cli("chat", "engine", input=b"one\ntwo\n")
    assert (outcome.code, outcome.out) == (0, "Hello\nHello\n")
    assert fake.prompts[1] == "<user>one<assistant>Hello<user>two"
    assert all(request.cancelled for request in fake.requests)


def test_a_message_the_engine_refuses_is_forgotten(cli, fake):
    outcome = cli("chat", "engine", input=b"long " * 50 + b"\none\n")
    assert outcome.code == 0
    assert "prompt: too long, expected at most 200 characters\nhint: /reset starts over" in outcome.err
    assert fake.prompts == ["<user>one"]


def test_an_unknown_word_of_command_helps(cli, fake):
    outcome = cli("chat", "engine", input=b"/quit\n")
    assert (outcome.out, outcome.err) == ("", "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer\n")


def test_run_needs_no_torch(cli, fake):
    before = "torch" in sys.modules
    cli("run", "engine", "hi")
    assert ("torch" in sys.modules) == before
