"""`slipway build` hands a checked recipe to the pipeline, and refuses what it can before anything slow begins."""

import json
import sys
import types

import pytest


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for slipway.compiler.pipeline; notes what it was asked to build."""
    import slipway.compiler

    calls = []

    def build(recipe, checkpoint, out, progress, why=False, dry_run=False):
        with progress.stage("capture"):
            calls.append((recipe, checkpoint, out, why, dry_run))
        return types.SimpleNamespace(text=lambda: f"{out}: built", to_json=lambda: {"engine": str(out)})

    module = types.SimpleNamespace(build=build, calls=calls)
    monkeypatch.setitem(sys.modules, "slipway.compiler.pipeline", module)
    monkeypatch.setattr(slipway.compiler, "pipeline", module, raising=False)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    return tmp_path / "checkpoint"


def test_build(cli, pipeline, checkpoint, tmp_path):
    out = tmp_path / "engine"
    outcome = cli("build", "qwen3-0.6b/cpu-int8", "--model", checkpoint, "-o", out, "--set", "limits.max_sequences=3", "--why")
    assert (outcome.code, outcome.out) == (0, f"{out}: built\n")
    assert outcome.err.startswith("capture ...\ncapture: ")
    ((recipe, *rest),) = pipeline.calls
    assert recipe.model == "Qwen3-0.6B" and recipe.limits.max_sequences == 3
    assert rest == [checkpoint, out, True, False]


def test_build_json(cli, pipeline, checkpoint, tmp_path):
    outcome = cli("build", "qwen3-0.6b/cpu-int8", "--model", checkpoint, "-o", tmp_path / "engine", "--json")
    assert json.loads(outcome.out) == {"engine": str(tmp_path / "engine")}


def refused(cli, pipeline, *arguments):
    outcome = cli("build", *arguments)
    assert (outcome.code, outcome.out, pipeline.calls) == (2, "", [])
    return outcome.err


def test_recipes_are_checked_first(cli, pipeline, checkpoint, tmp_path):
    (tmp_path / "r.yaml").write_text("schema: 2\n")
    message = refused(cli, pipeline, tmp_path / "r.yaml", "--model", checkpoint, "-o", tmp_path / "engine")
    assert f"{tmp_path}/r.yaml:1: schema: 2; expected 1\n" in message


def test_a_checkpoint_is_needed(cli, pipeline, tmp_path):
    message = refused(cli, pipeline, "qwen3-0.6b/cpu-int8", "-o", tmp_path / "engine")
    assert "names no checkpoint; expected a Hugging Face checkpoint folder\nhint: slipway build ... --model DIR" in message
    message = refused(cli, pipeline, "qwen3-0.6b/cpu-int8", "--model", tmp_path / "no", "-o", tmp_path / "engine")
    assert message == f"--model: no folder {tmp_path}/no; expected a Hugging Face checkpoint folder\n"


def test_the_recipes_checkpoint_is_named_by_its_line(cli, pipeline, tmp_path):
    args = ["demo-llama/cpu-int4", "-o", tmp_path / "engine", "--set", "checkpoint=nowhere"]
    assert refused(cli, pipeline, *args).startswith("--set checkpoint=nowhere: checkpoint: no folder ")


def test_an_engine_is_replaced_only_by_force(cli, pipeline, checkpoint, engine_dir):
    args = ["qwen3-0.6b/cpu-int8", "--model", checkpoint, "-o", engine_dir]
    assert "an engine is there already; expected a new path\nhint: --force replaces it" in refused(cli, pipeline, *args)
    assert cli("build", *args, "--force").code == 0
    assert cli("build", *args, "--dry-run").code == 0
    assert [call[4] for call in pipeline.calls] == [False, True]
