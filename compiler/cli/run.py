"""`slipway run`: one prompt, its completion on stdout and everything else on stderr."""

from __future__ import annotations

import dataclasses
import sys

import click

from slipway.compiler.cli.options import Loading, json_option, loading_options, sampling_options
from slipway.compiler.cli.tables import print_json
from slipway.compiler.errors import UserError
from slipway.compiler.quantities import seconds_text, tokens_text
from slipway.runtime.grammar import Grammar

EPILOG = """\b
Examples:
  slipway run engine "def fibonacci(n):" --max-tokens 64
  slipway run engine --chat "Why is the sky blue?" --temperature 0
  git diff | slipway run engine - > summary.txt
  slipway run engine "The user as JSON: " --json-schema user.schema.json

The completion alone goes to stdout, so a pipe or a file gets nothing else. --json prints one object instead: text, token_ids,
finish_reason and metrics.
"""


@click.command(epilog=EPILOG)
@loading_options
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Send the prompt as a user's message, in the model's chat template.")
@click.option("--system", help="With --chat: the system message.")
@click.option("--stream/--no-stream", default=True, help="Print text as it comes (default), or at the end.")
@json_option
@sampling_options
@click.option("--json-schema", type=click.File("rb"), metavar="FILE", help="Complete with JSON that fits this JSON schema.")
@click.option("--regex", metavar="PATTERN", help="Complete with what this regular expression matches.")
def run(
    loading: Loading, prompt: str, chat: bool, system: str | None, stream: bool, as_json: bool, sampling: dict, json_schema, regex: str | None
) -> None:
    """Complete PROMPT with ENGINE, an engine directory. A PROMPT of - reads stdin."""
    if json_schema and regex is not None:
        raise click.UsageError("--json-schema and --regex exclude each other.")
    if json_schema:
        sampling["grammar"] = Grammar.json_schema(decode(json_schema.read(), json_schema.name))
    elif regex is not None:
        sampling["grammar"] = Grammar.regex(regex)
    if system is not None and not chat:
        raise click.UsageError("--system goes with --chat.")
    if prompt == "-":
        prompt = decode(sys.stdin.buffer.read(), "stdin")
    with loading.engine() as engine:
        if chat:
            messages = [{"role": "system", "content": system}] * (system is not None) + [{"role": "user", "content": prompt}]
            prompt = engine.render_chat(messages)
        completion = complete(engine, prompt, sampling, echo=stream and not as_json)
        if as_json:
            print_json(completion_json(completion))
        elif not stream:
            click.echo(completion.text, nl=not completion.text.endswith("\n"))


def decode(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(where, f"byte {error.start} is not UTF-8", "text") from None


def complete(engine, prompt: str, sampling: dict, echo: bool):
    """The Completion of a prompt. echo: print the text as it comes. Ctrl-C cancels the request before it goes on."""
    from slipway.runtime.engine import SamplingParams

    text = ""
    request = engine.submit(prompt, SamplingParams(**sampling))
    try:
        for delta in request:
            text += delta.text
            if echo:
                click.echo(delta.text, nl=False)
                sys.stdout.flush()
    except BaseException:
        request.cancel()
        raise
    if echo and not text.endswith("\n"):
        click.echo()
    completion = request.result()
    click.echo(speed(len(completion.token_ids), completion.metrics), err=True)
    return completion


def speed(num_tokens: int, metrics) -> str:
    """64 tokens; the first after 12 ms, then 310 tokens/s"""
    words = f"{num_tokens} tokens; the first after {seconds_text(metrics.ttft_s)}"
    return words + (f", then {tokens_text(1 / metrics.inter_token_s)}" if metrics.inter_token_s else "")


def completion_json(completion) -> dict:
    values = dataclasses.asdict(completion)
    return {name: value for name, value in values.items() if name not in ("index", "logprobs")}
