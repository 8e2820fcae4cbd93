"""The recipes that come with Slipway load, say what their names say, and are found by name."""

import itertools

import pytest
from slipway.compiler.errors import UserError
from slipway.recipes import catalog, schema

MODELS = ["demo-llama", "demo-qwen3", "llama-3.1-8b", "llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-8b"]
GPUS = ["sm80", "sm86", "sm89", "sm90", "sm100", "sm120"]
NAMES = sorted([
    *(f"{model}/cpu-{precision}" for model, precision in itertools.product(MODELS, ["bf16", "int4", "int8"])),
    *(f"demo-llama/{gpu}-bf16" for gpu in GPUS),
    "demo-qwen3/sm90-bf16",
])


def test_every_model_has_every_precision():
    assert sorted(catalog.names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name):
    path = catalog.find(name)
    recipe = schema.load(path)
    assert f"{recipe.target}-{recipe.precision.weights}" == path.stem
    assert recipe.model.lower() == path.parent.name
    assert recipe.limits.kv_cache_tokens >= recipe.limits.max_sequence_length
    assert (recipe.checkpoint == "checkpoint") == path.parent.name.startswith("demo-")
    assert path.read_text().startswith("# yaml-language-server: $schema=../recipe.schema.json\n")


def test_the_editors_schema_is_up_to_date():
    committed = (catalog.ROOT / "recipe.schema.json").read_text()
    assert committed == catalog.json_schema(), "run: slipway recipes --schema > recipes/recipe.schema.json"


def test_a_recipe_is_found_by_name_or_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = catalog.ROOT / "demo-llama" / "cpu-int4.yaml"
    assert [catalog.find(name) for name in ("demo-llama/cpu-int4", "recipes/demo-llama/cpu-int4.yaml", str(path))] == [path] * 3


def test_an_unknown_recipe_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="demo-lama/cpu-int4: no such recipe.*\nhint: did you mean 'demo-llama/cpu-int4'"):
        catalog.find("demo-lama/cpu-int4")
    with pytest.raises(UserError, match="`slipway recipes` lists those"):
        catalog.find("zzz")
    with pytest.raises(UserError, match="a folder; expected a YAML file"):
        catalog.find(str(tmp_path))
