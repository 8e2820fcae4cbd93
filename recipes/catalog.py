"""Names of the recipes that come with Slipway (`demo-llama/cpu-int4`)  ->  their files; and the editors' JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

from slipway.compiler.errors import UserError
from slipway.recipes.problems import did_you_mean

ROOT = Path(__file__).parent


def names() -> list[str]:
    """Every recipe in the package as model/target-precision."""
    return sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("*/*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe given by path or by name. Raises UserError."""
    path = Path(name)
    if path.is_file():
        return path
    known = names()
    short = name.removesuffix(".yaml").removeprefix("recipes/")
    if short in known:
        return ROOT / f"{short}.yaml"
    found = "a folder" if path.is_dir() else "no such recipe"
    hint = did_you_mean(short, known) or "`slipway recipes` lists those that come with Slipway"
    raise UserError(name, found, "a YAML file, or the name of a recipe", hint)


def json_schema() -> str:
    """JSON schema of recipe files, for editors; committed as recipe.schema.json."""
    from slipway.recipes.schema import Recipe

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Recipe.model_json_schema(by_alias=True)
    return json.dumps(_without_titles(schema) | {"title": "Slipway recipe"}, indent=2) + "\n"


def _without_titles(node: object) -> object:
    """pydantic's generated titles repeat the keys."""
    if isinstance(node, dict):
        return {key: _without_titles(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node
