"""A server starts, loads, unloads, stops and dies without leaving a process or a shared memory region."""

import re
import shutil
import socket
import threading

import numpy as np
import pytest
import tritonclient.grpc as grpc
from clients import Stream, complete, generate, open_generate, tensor, vllm_inputs, wait_for
from tritonclient.utils import InferenceServerException

from slipway.compiler.triton_repository import Serving, write_repository
from slipway.runtime.errors import EngineError
from slipway.runtime.triton.server import Server

SOME = {"temperature": 0, "max_tokens": 400, "ignore_eos": True}
LONG = {"n": 16, "max_tokens": 1900, "ignore_eos": True}  # seconds, on any machine


def assert_nothing_left(server):
    assert server.processes() == [] and server.regions() == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(EngineError, match="no such folder"):
        Server(tmp_path / "none").start()


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} of 127.0.0.1: Address already in use"):
            Server(tmp_path, grpc_port=port).start()
    with pytest.raises(EngineError, match=f"port {port} of 127.0.0.1: Address already in use"):
        Server(tmp_path, http_port=port, grpc_port=port).start()


def test_an_engine_that_does_not_load_ends_the_start_with_its_sentence(repository, tmp_path):
    shutil.copytree(repository / "demo", tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo/1/engine")
    server = Server(tmp_path)
    with pytest.raises(EngineError, match="engine.json: no such file"):
        server.start()
    assert_nothing_left(server)


@pytest.fixture
def damaged(repository, tmp_path):
    """A repository whose engine has one bit of its weights flipped."""
    shutil.copytree(repository / "demo", tmp_path / "demo")
    shard = max((tmp_path / "demo/1/engine/weights").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return tmp_path, shard


def test_a_damaged_engine_is_not_served(damaged):
    repository, shard = damaged
    server = Server(repository)
    with pytest.raises(EngineError) as error:
        server.start()
    assert re.search(rf"^model demo: .*{shard.name}.*: contents changed since the build; the engine is damaged", str(error.value), re.MULTILINE)
    assert_nothing_left(server)


def test_verify_false_serves_without_looking(damaged):
    repository, _ = damaged
    config = repository / "demo/config.pbtxt"
    stated = 'parameters { key: "verify" value { string_value: "true" } }'
    assert stated in config.read_text()
    config.write_text(config.read_text().replace(stated, stated.replace("true", "false")))
    with Server(repository) as server:
        assert complete(server, "demo", vllm_inputs(max_tokens=4)) is not None


def test_a_moved_repository_serves_also_without_metrics(repository, tmp_path):
    shutil.copytree(repository / "demo", tmp_path / "elsewhere/demo")
    with Server(tmp_path / "elsewhere", arguments=("--allow-metrics=false",)) as server:
        assert complete(server, "demo", vllm_inputs(max_tokens=4))
    assert_nothing_left(server)


def test_load_and_unload(repository):
    with Server(repository, load_models=()) as server:
        client = grpc.InferenceServerClient(server.grpc)
        for _ in range(2):
            client.load_model("demo")
            assert complete(server, "demo", vllm_inputs(max_tokens=4))
            client.unload_model("demo")
            wait_for(lambda: len(server.processes()) == 1, "the model's process ends")
            assert generate(server, "demo", {"text_input": "a"})[0] == 404
        client.close()
    assert_nothing_left(server)


def test_unload_lets_requests_finish(repository):
    with Server(repository, load_models=("demo",)) as server:
        with Stream(server, "demo", vllm_inputs(**SOME)) as stream:
            responses = iter(stream)
            next(responses)
            client = grpc.InferenceServerClient(server.grpc)
            client.unload_model("demo")
            assert sum(1 for _ in responses) > 0
            client.close()
        wait_for(lambda: len(server.processes()) == 1, "the model's process ends")


def test_stop_under_load_lets_requests_finish(repository):
    with Server(repository, drain_s=20) as server:
        streams = [Stream(server, "demo", vllm_inputs(**SOME)) for _ in range(16)]
        texts = [next(iter(stream))["text_output"].flat[0] for stream in streams]
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        texts = [text + b"".join(r["text_output"].flat[0] for r in s) for text, s in zip(texts, streams, strict=True)]
        for stream in streams:
            stream.close()
        stopping.join()
        assert len(set(texts)) == 1 and texts[0] and server.process.returncode == 0
    assert_nothing_left(server)


def test_stop_ends_requests_that_do_not_finish_in_time(repository, monkeypatch):
    monkeypatch.setattr("slipway.runtime.triton.server.EXIT_GRACE_S", 0)
    with Server(repository, drain_s=0) as server:
        streams = [Stream(server, "demo", vllm_inputs(**LONG)) for _ in range(8)]
        next(iter(streams[0]))  # the others wait, or run
        server.stop()
        for stream in streams:
            with pytest.raises(InferenceServerException):
                list(stream)
            stream.close()
    assert_nothing_left(server)


def test_nothing_is_left_of_a_server_that_was_killed(repository):
    """Its models then wait for it for ever, inside Triton's code: only the launcher can end them."""
    with Server(repository) as server:
        connection, response = open_generate(server, "demo", {"text_input": "a", "stream": True, **LONG}, stream=True)
        response.readline()
        server.process.kill()
        server.process.wait()
        response.close()
        connection.close()
    assert_nothing_left(server)


def test_a_model_that_is_not_decoupled_answers_plain_infer(engine_dir, tmp_path):
    write_repository(engine_dir, tmp_path, "tensorrt_llm", serving=Serving(decoupled=False))
    with Server(tmp_path) as server:
        client = grpc.InferenceServerClient(server.grpc)
        inputs = {"text_input": [["def "]], "max_tokens": [[8]]}
        for model in ("ensemble", "tensorrt_llm_bls"):
            reply = client.infer(model, [tensor(name, value) for name, value in inputs.items()])
            assert reply.as_numpy("text_output")[0, 0].decode().startswith("def ")
        with pytest.raises(InferenceServerException, match="a stream asked of a model that is not decoupled"):
            client.infer("ensemble", [tensor(name, value) for name, value in (inputs | {"stream": [[True]]}).items()])
        several = inputs | {"num_return_sequences": np.array([[2]], np.int32)}
        reply = client.infer("ensemble", [tensor(name, value) for name, value in several.items()])
        assert reply.as_numpy("text_output").shape == (1, 2)
        client.close()
    assert_nothing_left(server)
