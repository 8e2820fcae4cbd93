"""`slipway chat`: a conversation with an engine on the terminal."""

from __future__ import annotations

import sys

import click

from slipway.compiler.cli.options import Loading, loading_options, sampling_options

EPILOG = """\b
In the conversation:
  /reset   forget what was said
  /exit    leave; so does Ctrl-D
  Ctrl-C   stops the answer under way

\b
Examples:
  slipway chat engine
  slipway chat engine --system "Answer in one sentence." --temperature 0.7
"""
HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


@click.command(epilog=EPILOG)
@loading_options
@click.option("--system", help="The system message.")
@sampling_options
def chat(loading: Loading, system: str | None, sampling: dict) -> None:
    """Talk with ENGINE, an engine directory, in its model's chat template."""
    with loading.engine() as engine:
        if sys.stdin.isatty():
            import readline  # noqa: F401 input() then has line editing and history

            click.echo(HELP, err=True)
        Conversation(engine, system, sampling).talk()


class Conversation:
    """messages: what was said so far, as the chat template takes it."""

    def __init__(self, engine, system: str | None, sampling: dict):
        self.engine, self.sampling = engine, sampling
        self.start = [{"role": "system", "content": system}] if system is not None else []
        self.messages = list(self.start)

    def talk(self) -> None:
        """Until /exit or the end of the input."""
        while (line := read_line()) is not None and line != "/exit":
            if line == "/reset":
                self.messages = list(self.start)
            elif line.startswith("/"):
                click.echo(HELP, err=True)
            elif line:
                self.answer(line)

    def answer(self, line: str) -> None:
        """Says the line and prints the answer. A message the engine refuses is forgotten, with the reason on stderr."""
        from slipway.runtime.engine import SamplingParams
        from slipway.runtime.errors import RequestError

        said = [*self.messages, {"role": "user", "content": line}]
        try:
            request = self.engine.submit(self.engine.render_chat(said), SamplingParams(**self.sampling))
            text = print_until_done(request)
        except RequestError as error:
            click.echo(f"{error}\nhint: /reset starts over", err=True)
        else:
            self.messages = [*said, {"role": "assistant", "content": text}]


def print_until_done(request) -> str:
    """What was printed of the answer; Ctrl-C ends it early."""
    text = ""
    try:
        for delta in request:
            text += delta.text
            click.echo(delta.text, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        request.cancel()
        click.echo(" [stopped]", nl=False, err=True)
    click.echo()
    return text


def read_line() -> str | None:
    """A line without its end, None at the end of the input. Ctrl-C empties the line."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            click.echo("\n(/exit or Ctrl-D leaves)", err=True)
