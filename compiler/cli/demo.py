"""`make demo`: the checkpoint in this repository  ->  an engine, a model repository, a real Triton, and streamed tokens.

Afterwards no process and no shared memory region of it is left. Run as `python -m slipway.compiler.cli.demo [folder]`.
"""

from __future__ import annotations

import http.client
import json
import queue
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.progress import for_stream
from slipway.compiler.triton_repository import write_repository
from slipway.recipes import catalog, schema
from slipway.runtime.errors import EngineError
from slipway.runtime.triton.server import Server

RECIPE = "demo-llama/cpu-bf16"
MODEL = "demo-llama"
PROMPT = "def read_lines(path):\n"
SAMPLING = {"temperature": 0, "max_tokens": 96}


@dataclass(frozen=True)
class Figures:
    way: str
    ttft_s: float
    tokens: int
    tokens_per_s: float  # of the whole request

    def __str__(self) -> str:
        return f"{self.way:24} TTFT {1000 * self.ttft_s:6.1f} ms   {self.tokens:3} tokens   {self.tokens_per_s:6.0f} tokens/s"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
    except (UserError, EngineError) as error:
        say(str(error))
        return 2
    return 0


def run(folder: Path) -> None:
    engine, repository = folder / "engine", folder / "repository"
    say(f"Building {RECIPE} in {engine}")
    build(engine)
    write_repository(engine, repository, "vllm", name=MODEL, copy_engine=True)
    say(f"Wrote the Triton model repository {repository}")
    with Server(repository, progress=say) as server:
        figures = [measure("gRPC stream", stream_grpc(server)), measure("HTTP /generate_stream", stream_http(server))]
    if server.processes() or server.regions():
        raise InternalError(f"left behind: processes {server.processes()}, shared memory {server.regions()}")
    say("Stopped Triton: no process and no shared memory region is left\n")
    for line in figures:
        print(line)


def build(engine: Path) -> None:
    from slipway.compiler import pipeline

    recipe = schema.load(catalog.find(RECIPE))
    with for_stream(sys.stderr) as progress:
        pipeline.build(recipe, recipe.checkpoint_dir, engine, progress)


def measure(way: str, responses: Iterator[tuple[str, int]]) -> Figures:
    """Prints the text as it comes. responses: text and number of tokens."""
    say(f"\n{way}: {PROMPT!r} ...")
    start, first, tokens = time.perf_counter(), None, 0
    for text, count in responses:
        print(text, end="", flush=True)
        first = first or time.perf_counter()
        tokens += count
    print()
    if first is None:
        raise InternalError(f"{way}: no response")
    return Figures(way, first - start, tokens, tokens / (time.perf_counter() - start))


def stream_grpc(server: Server) -> Iterator[tuple[str, int]]:
    """Connects at once; the request goes out with the first step of the iterator."""
    import numpy as np
    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    def tensor(name: str, value: object, dtype: type) -> grpc.InferInput:
        array = np.array([value], dtype)
        made = grpc.InferInput(name, [1], np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array)
        return made

    inputs = [tensor("text_input", PROMPT, np.object_), tensor("sampling_parameters", json.dumps(SAMPLING), np.object_)]
    inputs += [tensor(name, True, np.bool_) for name in ("stream", "return_num_output_tokens")]
    client = grpc.InferenceServerClient(server.grpc)
    client.is_server_ready()
    return grpc_responses(client, inputs)


def grpc_responses(client, inputs: list) -> Iterator[tuple[str, int]]:
    responses: queue.Queue = queue.Queue()
    with client:
        client.start_stream(lambda result, error: responses.put((result, error)))
        client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
        final = False
        while not final:
            result, error = responses.get()
            if error:
                raise error
            final = result.get_response().parameters["triton_final_response"].bool_param
            yield result.as_numpy("text_output")[0].decode(), int(result.as_numpy("num_output_tokens")[0])


def stream_http(server: Server) -> Iterator[tuple[str, int]]:
    body = {"text_input": PROMPT, "stream": True, "return_num_output_tokens": True, **SAMPLING}
    connection = http.client.HTTPConnection(server.http)
    connection.request("POST", f"/v2/models/{MODEL}/generate_stream", json.dumps(body))
    response = connection.getresponse()
    for line in response:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                raise InternalError(event["error"])
            yield event["text_output"], event["num_output_tokens"]
    connection.close()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
