"""`slipway recipes`: the recipes in the package."""

from __future__ import annotations

import click

from slipway.compiler.cli.tables import print_json, table

EPILOG = """\b
Examples:
  slipway recipes                            all recipes
  slipway recipes show qwen3-0.6b/cpu-int8   one, as it stands in its file
  slipway recipes show demo-llama/cpu-int4 --resolved
  slipway recipes --schema > recipe.schema.json

A recipe is a short YAML file: copy one, change it, and build with its path.
"""


@click.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--schema", is_flag=True, help="Print the JSON schema of recipes, for editors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def recipes(context: click.Context, schema: bool, as_json: bool) -> None:
    """List the recipes that come with Slipway."""
    from slipway.recipes import catalog

    if context.invoked_subcommand:
        return
    if schema:
        click.echo(catalog.json_schema(), nl=False)
    elif as_json:
        print_json([{"name": name, **_loaded(name).resolved()} for name in catalog.names()])
    else:
        click.echo(table(("RECIPE", "MODEL", "WEIGHTS", "LONGEST", "AT ONCE", "KV TOKENS"), _rows(), right=(3, 4, 5)))


@recipes.command()
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Print every value, defaults included, as JSON.")
def show(name: str, resolved: bool) -> None:
    """Print the recipe NAME, a name from the list or a path."""
    from slipway.recipes import catalog

    if resolved:
        print_json(_loaded(name).resolved())
    else:
        click.echo(catalog.find(name).read_text(), nl=False)


def _loaded(name: str):
    from slipway.recipes import catalog, schema

    return schema.load(catalog.find(name))


def _rows() -> list[tuple[str, ...]]:
    from slipway.recipes import catalog

    loaded = [(name, _loaded(name)) for name in catalog.names()]
    return [
        (name, r.model, r.precision.weights, str(r.limits.max_sequence_length), str(r.limits.max_sequences), str(r.limits.kv_cache_tokens))
        for name, r in loaded
    ]
