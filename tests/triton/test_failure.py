"""An engine that breaks behind a real Triton: whoever waits is told why, and the model is no longer ready."""

import sys
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from clients import Stream, generate, wait_for
from tritonclient.utils import InferenceServerException

from slipway.compiler.triton_repository import Serving, write_repository
from slipway.runtime.triton.server import Server

sys.path.append(str(Path(__file__).parents[1] / "runtime/toy"))
from toy_engine import Toy, compile_kernels

ALIASES = ("ensemble", "tensorrt_llm", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A toy engine that breaks at a prompt that begins with 254; its other requests take ten seconds and more."""
    folder = tmp_path_factory.mktemp("toy")
    engine = Toy(extra=("toy_break", *["toy_dawdle"] * 50)).write(folder / "engine", compile_kernels(folder / "toy.so"))
    write_repository(engine, folder / "models", "tensorrt_llm", serving=Serving(threads=1))
    return folder / "models"


def ids(token, streaming=True):
    inputs = {"input_ids": [[token]], "input_lengths": [[1]], "request_output_len": [[200]], "end_id": [[-1]]}
    return inputs | {"streaming": [[streaming]]}


def break_while_others_wait(server):
    """Every request that runs or comes later ends with the reason; one that comes when the model is unloaded, with that."""
    # With those that follow, as many as run at once: 254 waits for none of them, in whatever order they arrive.
    streams = [Stream(server, "tensorrt_llm", ids(token, streaming=token % 2 == 0)) for token in range(12)]
    next(iter(streams[0]))
    for stream in [*streams, *(Stream(server, "tensorrt_llm", ids(token)) for token in (254, 1, 2, 3))]:
        with pytest.raises(InferenceServerException, match="the toy broke|no available versions"):
            list(stream)
        stream.close()


def test_a_broken_engine_fails_all_requests_and_is_not_ready(repository):
    with Server(repository, drain_s=5) as server:
        client = grpc.InferenceServerClient(server.grpc)
        assert client.is_server_ready() and all(client.is_model_ready(name) for name in ALIASES)
        break_while_others_wait(server)
        wait_for(lambda: not any(client.is_model_ready(name) for name in ALIASES), "no name of the model is ready")
        assert not client.is_server_ready()
        assert generate(server, "ensemble", {"text_input": "a", "max_tokens": 4})[0] >= 400
        client.close()
    assert server.processes() == [] and server.regions() == []


def test_where_models_cannot_unload_every_later_request_is_refused_with_the_reason(repository):
    with Server(repository, load_models=(), drain_s=5, arguments=("--model-control-mode=none",)) as server:
        break_while_others_wait(server)
        wait_for(lambda: "ensemble can serve no more and refuses requests" in server.log, "the model says so")
        for name in ALIASES:
            body = {"input_ids": [1], "input_lengths": 1} if name == "tensorrt_llm" else {"text_input": "a"}
            length = "request_output_len" if name == "tensorrt_llm" else "max_tokens"
            status, reply = generate(server, name, body | {length: 4})
            assert status >= 400 and "engine: it has failed: the toy broke" in reply["error"]
