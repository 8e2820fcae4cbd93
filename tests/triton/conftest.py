"""The demo engine, and one server on it for all tests that need one."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory):
    from slipway.compiler import pipeline
    from slipway.compiler.progress import Progress
    from slipway.recipes import catalog, schema

    recipe = schema.load(catalog.find("demo-llama/cpu-bf16"))
    out = tmp_path_factory.mktemp("engine") / "demo-llama"
    pipeline.build(recipe, recipe.checkpoint_dir, out, Progress())
    return out


@pytest.fixture(scope="session")
def repository(engine_dir, tmp_path_factory):
    """Both contracts in one repository, the engine inside it."""
    from slipway.compiler.triton_repository import write_repository

    out = tmp_path_factory.mktemp("repository") / "models"
    write_repository(engine_dir, out, "vllm", name="demo", copy_engine=True)
    write_repository(engine_dir, out, "tensorrt_llm", copy_engine=True)
    return out


@pytest.fixture(scope="session")
def server(repository):
    from slipway.runtime.triton.server import Server

    with Server(repository, drain_s=5) as server:
        yield server
