"""`slipway triton`: an engine as a Triton model repository, served on request."""

from __future__ import annotations

import time
from pathlib import Path

import click

from slipway.compiler.cli.options import FOLDER, Loading, loading_options

POLL_S = 0.2
EPILOG = """\b
Examples:
  slipway triton engine -o repository              writes it
  slipway triton engine -o repository --start      serves it here until Ctrl-C
  slipway triton engine -o repository --contract tensorrt_llm

\b
A server of your own; in this mode a model that can serve no more unloads itself, so that probes see it:
  tritonserver --model-repository repository --model-control-mode explicit --load-model '*'

\b
With the server running:
  curl localhost:8000/v2/models/MODEL/generate -d '{"text_input": "Hello", "sampling_parameters": "{\\"max_tokens\\": 16}"}'

--start needs the server that the extra brings: pip install 'slipway[triton]'.
"""


@click.command(epilog=EPILOG)
@loading_options
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="The repository; a model is added to an existing one.")
@click.option("--contract", type=click.Choice(["vllm", "tensorrt_llm"]), default="vllm", show_default=True,
              help="Whose clients it serves: the names and types of inputs and outputs.")  # fmt: skip
@click.option("--name", help="Name of the model in Triton; by default the recipe's.")
@click.option("--copy", is_flag=True, help="Put the engine into the repository instead of its path.")
@click.option("--decoupled/--no-decoupled", default=True, show_default=True,
              help="Streams, which plain `infer` calls cannot receive; without, one response a request.")  # fmt: skip
@click.option("--max-queued", type=click.IntRange(1), default=1024, show_default=True, metavar="N",
              help="Requests that may wait; further ones are refused.")  # fmt: skip
@click.option("--start", is_flag=True, help="Serve the repository until Ctrl-C.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --start: the address to listen on.")
@click.option("--ports", type=click.IntRange(0, 65535), nargs=3, default=(8000, 8001, 8002), show_default=True, metavar="HTTP GRPC METRICS",
              help="With --start; 0 takes a free port.")  # fmt: skip
def triton(
    loading: Loading,
    out: Path,
    contract: str,
    name: str | None,
    copy: bool,
    decoupled: bool,
    max_queued: int,
    start: bool,
    host: str,
    ports: tuple[int, ...],
) -> None:
    """Write ENGINE, an engine directory, as a Triton model repository.

    How the engine is loaded and whether it streams is written into the repository.
    """
    from slipway.compiler.triton_repository import Serving, write_repository

    serving = Serving(decoupled, loading.threads, loading.kv_tokens, max_queued, loading.verify, loading.emulate)
    names = write_repository(loading.path, out, contract, name=name, copy_engine=copy, serving=serving)
    click.echo(f"{out}: {', '.join(names)}", err=start)
    if start:
        serve(out, host, ports)


def serve(repository: Path, host: str, ports: tuple[int, ...]) -> None:
    """Until Ctrl-C or SIGTERM; the server ending by itself is an error."""
    from slipway.runtime.errors import EngineError
    from slipway.runtime.triton.server import Server

    http_port, grpc_port, metrics_port = ports
    server = Server(repository, host, http_port, grpc_port, metrics_port, progress=lambda line: click.echo(line, err=True))
    with server:
        click.echo(f"metrics on http://{server.metrics}/metrics; Ctrl-C stops the server", err=True)
        try:
            while server.process.poll() is None:
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            click.echo("stopping Triton", err=True)
            return
        raise EngineError("triton", f"the server ended with exit code {server.process.returncode}")
