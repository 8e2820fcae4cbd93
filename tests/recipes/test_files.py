"""The recipes that come with Slipway load, say what their names say, and are found by name."""

import itertools

import pytest
from slipway.compiler.cards import CARDS
from slipway.compiler.errors import UserError
from slipway.compiler.target import GPUS
from slipway.recipes import catalog, schema

CPU_MODELS = ["demo-llama", "demo-qwen3", "llama-3.1-8b", "llama-3.2-1b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-8b"]
GPU_MODELS = ["llama-3.1-70b", "llama-3.1-8b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-14b", "qwen3-32b", "qwen3-4b", "qwen3-8b"]
NAMES = sorted([
    *(f"{model}/cpu-{precision}" for model, precision in itertools.product(CPU_MODELS, ["bf16", "int4", "int8"])),
    *(f"demo-llama/{gpu}-bf16" for gpu in GPUS),
    "demo-qwen3/sm90-bf16",
])


ON_CARDS = [name for name in catalog.names() if name.partition("/")[2].startswith(tuple(f"{card}-" for card in CARDS))]


def test_every_model_has_every_precision():
    assert sorted(set(catalog.names()) - set(ON_CARDS)) == NAMES


def test_every_model_has_a_recipe_for_every_card():
    assert [name.rpartition("-")[0] for name in ON_CARDS] == sorted(f"{model}/{card}" for model in GPU_MODELS for card in CARDS)


@pytest.mark.parametrize("name", ON_CARDS)
def test_recipe_for_a_card(name):
    """Its weights leave the card room for keys and values."""
    path = catalog.find(name)
    recipe, (card, weights) = schema.load(path), path.stem.rsplit("-", 1)
    assert (recipe.target, recipe.precision.weights) == (CARDS[card].target, weights)
    assert recipe.model.lower() == path.parent.name and recipe.checkpoint is None
    billions = float(path.parent.name.rpartition("-")[2].removesuffix("b"))
    assert billions * 1e9 * {"int8": 1.0, "fp8": 1.0, "int4": 0.53, "nvfp4": 0.57}[weights] < 0.85 * CARDS[card].memory_bytes
    assert path.read_text().startswith("# yaml-language-server: $schema=../recipe.schema.json\n")


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
