"""`slipway check`: one sentence: the engine loads here, or why not."""

from __future__ import annotations

import click

from slipway.compiler.cli.options import Loading, json_option, loading_options
from slipway.compiler.cli.tables import print_json

EPILOG = """\b
Exit codes: 0 if the engine loads here, 2 if it does not.

\b
Examples:
  slipway check engine
  slipway check engine --no-verify      without reading every file
"""


@click.command(epilog=EPILOG)
@loading_options
@json_option
@click.pass_context
def check(context: click.Context, loading: Loading, as_json: bool) -> None:
    """Say in one sentence whether ENGINE, an engine directory, loads here, or why not."""
    from slipway.runtime.errors import EngineError
    from slipway.runtime.gpu import emulation
    from slipway.runtime.manifest import Manifest

    try:
        with loading.engine():
            manifest = Manifest.read(loading.path)
    except EngineError as error:
        if not as_json:
            raise
        print_json({"loads": False, "reason": str(error)})
        context.exit(2)
    emulated = ", by emulation on the CPU" if emulation(manifest.target, loading.emulate) is not None else ""
    sentence = f"{loading.path}: loads here{emulated}: {manifest.model} for {manifest.target.kind} ({manifest.target.isa})"
    print_json({"loads": True, "reason": None}) if as_json else click.echo(sentence)
