"""The commands of `slipway`, each imported when it is called: cli/<name>.py holds a click command called <name>."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

import click

SUMMARIES = {
    "build": "Build an engine directory from a recipe and a checkpoint.",
    "run": "Complete one prompt.",
    "chat": "Talk with an engine.",
    "triton": "Write a Triton model repository, and serve it.",
    "bench": "Measure an engine beside the machine's limits.",
    "inspect": "Show what an engine directory holds.",
    "explain": "Show where a step's time goes.",
    "check": "Say in one sentence whether an engine loads here.",
    "recipes": "List the recipes that come with Slipway.",
    "doctor": "Say what this machine can build and run.",
}

EPILOG = """\b
From a checkpoint to a served model:
  slipway build qwen3-0.6b/cpu-int8 --model ~/Qwen3-0.6B -o engine
  slipway run engine "The capital of France is"
  slipway triton engine -o repository --start

Exit codes: 0, 2 for something you can mend, 1 for a bug in Slipway, 130 after Ctrl-C.
"""


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class LazyCommands(Mapping):
    """Command objects by name; looking one up imports its module."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in SUMMARIES:
            raise KeyError(name)
        return getattr(importlib.import_module(f"slipway.compiler.cli.{name}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(SUMMARIES)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from slipway.compiler.version import version

        click.echo(f"slipway {version()}")
        context.exit()


@click.group(cls=Commands, commands=LazyCommands(), epilog=EPILOG, context_settings=SETTINGS)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version.")
def slipway() -> None:
    """Build LLM serving engines ahead of time, check them, ship them, serve them behind Triton."""
