"""Engines of the demo models, each built once a session by the real pipeline."""

import sys
from pathlib import Path

import pytest

from slipway.compiler import pipeline
from slipway.compiler.progress import Progress
from slipway.recipes import catalog, schema


sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "plugins")]  # for `import greedy`, `as_multiplied` under --import-mode=importlib


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """build("demo-llama/cpu-int4", "runtime.deterministic=true") -> the engine directory."""
    made = {}

    def get(name, *overrides):
        key = (name, *overrides)
        if key not in made:
            recipe = schema.load(catalog.find(name), overrides)
            out = tmp_path_factory.mktemp("engines") / "engine"
            pipeline.build(recipe, recipe.checkpoint_dir, out, Progress())
            made[key] = out
        return made[key]

    return get
