"""Options that several commands share, each group handed to the command as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from slipway.compiler.errors import UserError

FOLDER = click.Path(path_type=Path)

engine_argument = click.argument("engine", type=FOLDER)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

SAMPLING = (
    click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Length of the completion at most."),
    click.option("--temperature", type=click.FloatRange(0), metavar="X", help="0 always takes the likeliest token."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="X", help="Keep the likeliest tokens up to this probability."),
    click.option("--top-k", type=click.IntRange(0), metavar="N", help="Keep this many of the likeliest tokens; 0 keeps all."),
    click.option("--min-p", type=click.FloatRange(0, 1), metavar="X", help="Keep tokens at least this likely, relative to the likeliest."),
    click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), metavar="X", help="Above 1: no repeating."),
    click.option("--seed", type=click.IntRange(0, 2**64 - 1), metavar="N", help="The same seed gives the same completion."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given again."),
)
SAMPLING_NAMES = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")


def sampling_options(command: Callable) -> Callable:
    """Gives the command `sampling`: the sampling parameters stated on the command line, by name."""

    @functools.wraps(command)
    def with_sampling(*args: Any, **options: Any) -> Any:
        values = {name: options.pop(name) for name in SAMPLING_NAMES}
        stated = {name: list(value) if name == "stop" else value for name, value in values.items() if value not in (None, ())}
        return command(*args, sampling=stated, **options)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(SAMPLING), with_sampling)


@dataclass(frozen=True)
class Loading:
    """How an engine is loaded; None leaves it to the engine."""

    path: Path
    threads: int | None = None
    kv_tokens: int | None = None
    verify: bool = True
    emulate: bool | None = None

    def engine(self):
        """The loaded engine, a context manager."""
        from slipway.runtime.engine import Engine

        return Engine.load(self.path, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What Engine.load takes beside the path."""
        return {"threads": self.threads, "kv_tokens": self.kv_tokens, "verify": self.verify, "emulate": self.emulate}


def refuse_emulation(where: str, manifest, loading: Loading) -> None:
    """Raises UserError where times would be those of an emulated GPU."""
    from slipway.runtime.gpu import emulation

    if emulation(manifest.target, loading.emulate) is not None:
        raise UserError(where, "times of an emulated GPU say nothing of a real one", "a GPU", "slipway explain says what a card's limits allow, without one")


def loading_options(command: Callable) -> Callable:
    """Gives the command its ENGINE argument and the options of loading as `loading`."""

    @functools.wraps(command)
    def with_loading(*args: Any, engine: Path, threads: int | None, kv_tokens: int | None, verify: bool, emulate: bool, **options: Any) -> Any:
        return command(*args, loading=Loading(engine, threads, kv_tokens, verify, emulate or None), **options)

    options = (
        engine_argument,
        click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads that compute; one a core by default."),
        click.option("--kv-tokens", type=click.IntRange(1), metavar="N", help="Tokens the KV cache holds, rounded up to whole blocks; by default as the recipe says."),
        click.option("--verify/--no-verify", default=True, show_default=True, help="Compare every file with its hash."),
        click.option("--emulate", is_flag=True, help="Run an engine for a GPU on the CPU, by emulation: right, and slow."),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), with_loading)
