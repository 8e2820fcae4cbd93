"""`slipway build`: a recipe and a checkpoint become an engine directory."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from slipway.compiler.cli.options import FOLDER, json_option
from slipway.compiler.cli.tables import print_json
from slipway.compiler.errors import UserError

EPILOG = """\b
Examples:
  slipway build demo-llama/cpu-int4 -o engine
  slipway build qwen3-0.6b/cpu-int8 --model ~/Qwen3-0.6B -o engine
  slipway build my.yaml -o engine --set limits.max_sequences=8 --set precision.lm_head=bf16
  slipway build my.yaml -o engine --dry-run       what would be built, how big, how fast

Stages that were built before come from a cache; --why tells for each why it ran or not. The engine appears at its place
only when it is whole and has passed its accuracy check. `slipway recipes` lists recipes.
"""


@click.command(epilog=EPILOG)
@click.argument("recipe")
@click.option("-o", "--output", "out", type=FOLDER, required=True, help="The engine directory to make.")
@click.option("--model", type=FOLDER, help="Hugging Face checkpoint folder; goes before the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe; may be given again.")
@click.option("--why", is_flag=True, help="Say of each stage why it ran.")
@click.option("--dry-run", is_flag=True, help="Build nothing; print stages, memory and predicted speed.")
@click.option("--force", is_flag=True, help="Replace an engine that is there already.")
@json_option
def build(recipe: str, out: Path, model: Path | None, overrides: tuple[str, ...], why: bool, dry_run: bool, force: bool, as_json: bool) -> None:
    """Build an engine directory from RECIPE, a YAML file or the name of a recipe that comes with Slipway."""
    from slipway.compiler import progress
    from slipway.recipes import catalog, schema

    loaded = schema.load(catalog.find(recipe), overrides)
    checkpoint = checkpoint_of(loaded, model)
    if (out / "engine.json").exists() and not (force or dry_run):
        raise UserError(str(out), "an engine is there already", "a new path", "--force replaces it")
    from slipway.compiler import pipeline  # imports torch: after everything that can be refused without

    with progress.for_stream(sys.stderr) as display:
        report = pipeline.build(loaded, checkpoint, out, display, why=why, dry_run=dry_run)
    print_json(report.to_json()) if as_json else click.echo(report.text())


def checkpoint_of(recipe, model: Path | None) -> Path:
    """The checkpoint folder, which must exist."""
    if model is not None:
        checkpoint, wrong = model, lambda found: UserError("--model", found, "a Hugging Face checkpoint folder")
    elif recipe.checkpoint_dir is not None:
        checkpoint = recipe.checkpoint_dir
        wrong = lambda found: recipe.error(("checkpoint",), found, "a Hugging Face checkpoint folder", "--model DIR names another")
    else:
        raise UserError(str(recipe.path), "names no checkpoint", "a Hugging Face checkpoint folder", "slipway build ... --model DIR")
    if not checkpoint.is_dir():
        raise wrong(f"no folder {checkpoint}")
    return checkpoint
