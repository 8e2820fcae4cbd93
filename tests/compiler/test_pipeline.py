"""The whole pipeline on tiny random checkpoints: what is built says what transformers says, and only what changed is built again."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from published import Layout, publish
from safetensors.torch import load_file, save_file
from slipway.compiler import pipeline, verify
from slipway.compiler.errors import UserError
from slipway.compiler.machine import host_isa, host_isas
from slipway.compiler.progress import Progress
from slipway.plugins.linear.pack import Panels
from slipway.quantization.formats import INT8
from slipway.recipes import schema
from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Manifest
from slipway.runtime.score import Scorer

RECIPE = """
schema: 1
model: tiny
target: cpu
cpu: {threads: 2}
precision: {weights: bf16}
limits: {max_sequence_length: 96, max_batch_tokens: 32, max_sequences: 4}
verify: {when: never}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(tiny, tmp_path, cache, monkeypatch):
    """build(family, *overrides) -> (engine directory, report)"""
    monkeypatch.setenv("SLIPWAY_CACHE", str(cache))
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def run(family, *overrides, out="engine", **options):
        recipe = schema.load(tmp_path / "tiny.yaml", overrides)
        return tmp_path / out, pipeline.build(recipe, tiny(family).checkpoint.directory, tmp_path / out, Progress(), **options)

    return run


def divergence(tiny_model, engine):
    """Mean KL of the engine's next-token distributions from transformers', nats."""
    tokens = np.random.default_rng(0).integers(3, 120, 80).astype(np.int32)
    reference = torch.log_softmax(tiny_model.logits(tokens.tolist()), -1)
    found = torch.log_softmax(torch.from_numpy(Scorer(engine).logits(tokens)), -1)
    return float((reference.exp() * (reference - found)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama-yarn", "qwen3", "qwen2", "mistral", "phi3", "granite", "glm4"])
def test_families_without_segments(build, tiny, family):
    engine, report = build(family)
    assert not report.segments
    assert divergence(tiny(family), engine) < 0.01


@pytest.mark.parametrize("family", ["olmo2", "starcoder2", "cohere", "gpt-neox", "opt", "stablelm-one-kv-head"])
def test_what_has_no_kernel_runs_in_onnx_runtime(build, tiny, family):
    engine, report = build(family)
    assert report.segments and list((engine / "segments").glob("*.onnx"))
    assert divergence(tiny(family), engine) < 0.01


def test_segments_read_positions(build):
    """OPT looks up embeddings by positions; StableLM's rotation of a single head fits no pattern of ours."""
    for family in ("opt", "stablelm-one-kv-head"):
        plan = Manifest.read(build(family)[0]).plan
        assert [step.batch_inputs for step in plan.steps if step.segment].count(("positions",)) == 1


def test_a_chunk_of_a_prompt_may_want_no_logits(build):
    engine, _ = build("gpt-neox")
    tokens, scorer = np.random.default_rng(0).integers(3, 120, 40).astype(np.int32), Scorer(engine)
    whole, none = scorer.logits(tokens)[-1:], np.zeros(0, np.int32)
    first, blocks = np.arange(32, dtype=np.int32), np.arange(3, dtype=np.int32)[None]
    scorer.executor.run(tokens[:32], first, np.array([0, 32], np.int32), np.array([32], np.int32), blocks, none)
    last = scorer.executor.run(tokens[32:], first[:8] + 32, np.array([0, 8], np.int32), np.array([40], np.int32), blocks, first[7:8])
    np.testing.assert_allclose(last, whole, atol=1e-4)


def test_a_second_build_runs_nothing(build):
    build("qwen3")
    _, report = build("qwen3", why=True)
    assert not [stage for stage in report.stages if stage.ran]
    assert "cached" in report.text()


def test_only_what_depends_on_a_changed_line_is_built_again(build):
    build("qwen3")
    _, report = build("qwen3", "precision.lm_head=int8")
    ran = [stage for stage in report.stages if stage.ran]
    assert {stage.kind for stage in ran} == {"objects", "kernels", "weights"}
    (weights,) = (stage.subject for stage in ran if stage.kind == "weights")
    assert weights.split()[-1] == f"linear_{Panels(INT8, host_isa())}"
    assert all("int8" in stage.subject for stage in ran if stage.kind == "objects")


def test_a_dry_run_builds_nothing(build):
    engine, report = build("llama", dry_run=True)
    assert not engine.exists()
    assert report.predictions[0].batch_1 > 0 and report.memory.kv_tokens >= 4 * 96
    assert "would be built" in report.text() and json.dumps(report.to_json())
    _, built = build("llama")
    assert built.memory.weights <= report.memory.weights < 1.05 * built.memory.weights  # equal weights are stored once


def test_a_moved_engine_loads(build, tiny, tmp_path):
    engine, _ = build("qwen3")
    shutil.move(engine, tmp_path / "elsewhere")
    assert divergence(tiny("qwen3"), tmp_path / "elsewhere") < 0.01


def damaged_copy(engine, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(engine, copy)
    weight = max((copy / "weights").iterdir(), key=lambda path: path.stat().st_size)
    weight.chmod(0o644)
    data = bytearray(weight.read_bytes())
    weight.write_bytes(damage(data))
    return copy


def flip_a_bit(data):
    data[len(data) // 2] ^= 1
    return data


@pytest.mark.parametrize("damage", [flip_a_bit, lambda data: data[:-1]])
def test_a_damaged_engine_is_refused_in_one_sentence(build, tmp_path, damage):
    engine, _ = build("qwen3")
    with pytest.raises(EngineError) as refused:
        Scorer(damaged_copy(engine, tmp_path, damage))
    assert "\n" not in str(refused.value) and "build it again" in str(refused.value)


def test_no_number_of_a_manifest_brings_the_process_down(build):
    engine, _ = build("qwen3")
    mutants = pathlib.Path(__file__).parents[1] / "runtime" / "toy" / "mutants.py"
    done = subprocess.run([sys.executable, mutants, engine, "2", "5"], capture_output=True, text=True)
    fates = done.stdout.splitlines()
    assert done.returncode == 0 and len(fates) > 50, done.stderr
    assert not [fate for fate in fates if not fate.startswith(("ran ", "refused "))], done.stderr


def test_a_damaged_cache_entry_is_made_again(build, tiny, cache):
    build("llama-linear")
    victim = max((cache / "weights").glob("*/*"), key=lambda path: path.stat().st_mtime)
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(bytes(flip_a_bit(bytearray(data))))
    engine, report = build("llama-linear", out="again")
    assert [(stage.kind, stage.why) for stage in report.stages if stage.ran] == [("weights", "its cache entry is damaged")]
    assert divergence(tiny("llama-linear"), engine) < 0.01


def test_an_engine_that_is_edited_leaves_the_cache_alone(build, tiny):
    engine, _ = build("llama")
    for path in [*engine.glob("kernels/*"), *engine.glob("weights/*")]:
        path.write_bytes(b"")
    engine, report = build("llama", out="again")
    assert not [stage for stage in report.stages if stage.ran]
    assert divergence(tiny("llama"), engine) < 0.01


def test_a_failed_check_publishes_nothing(build, tmp_path):
    with pytest.raises(UserError, match="misses its accuracy"):
        build("llama", "verify.when=always", "verify.kl=1e-12", out="never")
    assert not [path.name for path in tmp_path.iterdir() if "never" in path.name]


def test_a_build_that_is_not_verified_says_so(build, monkeypatch):
    assert "\nnot verified: verify.when is never\n" in build("qwen2")[1].text()
    monkeypatch.setattr(verify, "available_bytes", lambda: 1000)
    text = build("qwen2", "verify.when=auto")[1].text()
    assert re.search(r"\nnot verified: the checkpoint takes \d+ kB in float32, 1 kB of memory are free\n", text)


@pytest.mark.parametrize(
    ("override", "patched", "why"),
    [
        ("limits.max_batch_tokens=32", None, "cached"),
        ("limits.max_batch_tokens=16", None, "changed: plan"),
        ("cpu.threads=1", None, "changed: threads"),
        ("cpu.threads=2", "runtime_digest", "changed: runtime"),
        ("cpu.threads=2", "processor", "changed: machine"),
    ],
)
def test_accuracy_is_measured_again_when_anything_it_depends_on_changed(build, monkeypatch, override, patched, why):
    build("qwen2", "verify.when=always", "verify.kl=1")
    if patched:
        monkeypatch.setattr(verify, patched, lambda: "another")
    _, report = build("qwen2", "verify.when=always", "verify.kl=1", override)
    (measured,) = [stage for stage in report.stages if stage.kind == "accuracy"]
    assert measured.why == why


def gate(engine):
    return Manifest.read(engine).recipe["verify"]["kl"]


def test_the_loosest_format_in_use_sets_the_accuracy(build):
    unused = "precision.overrides=[{match: '*.o_proj', weights: int8}, {match: 'model.layers.0.self_attn.o_proj', weights: int4}]"
    assert gate(build("llama")[0]) == 0.002
    assert gate(build("llama", unused)[0]) == 0.005
    assert gate(build("llama", unused, "verify.kl=0.01")[0]) == 0.01


@pytest.mark.parametrize(
    ("match", "hint"),
    [
        ("model.layers.*.mlp.down_prj", "did you mean 'model.layers.*.mlp.down_proj'?"),
        ("model.layers.7.mlp.up_proj", "did you mean 'model.layers."),
        ("model.embed_tokens", "the model has lm_head"),
    ],
)
def test_an_override_that_matches_no_linear_is_refused(build, tmp_path, match, hint):
    override = f"precision.overrides=[{{match: '{match}', weights: int4}}]"
    with pytest.raises(UserError) as refused:
        build("llama", override)
    where, found, hinted = re.fullmatch(r"(--set .*): (.* matches no linear of this model); expected .*\nhint: (.*)", str(refused.value)).groups()
    assert where == f"--set {override}: precision.overrides.0.match" and repr(match) in found and hinted.startswith(hint)
    assert not (tmp_path / "engine").exists()


def test_libraries_draw_and_print_nothing_into_a_build(build, tiny, tmp_path, monkeypatch, capfd):
    """With segments exported and the checkpoint loaded to verify, nothing of it from a cache."""
    tiny("olmo2")
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path / "cache"))
    capfd.readouterr()
    _, report = build("olmo2", "verify.when=always", "verify.kl=1")
    assert {"segments", "accuracy"} <= {stage.kind for stage in report.stages if stage.ran}
    assert capfd.readouterr() == ("", "")


def test_every_isa_builds(build):
    for isa in host_isas():
        engine, _ = build("llama", f"cpu.isa={isa}", out=isa)
        assert Manifest.read(engine).target.isa == isa


@pytest.fixture
def build_int4(tiny, tmp_path, cache, monkeypatch):
    """build_int4(layout, *overrides, family) -> the report, of the tiny model so stored and compared with what its codes stand for."""
    monkeypatch.setenv("SLIPWAY_CACHE", str(cache))
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def run(layout, *overrides, family="llama"):
        checkpoint = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        publish(tiny(family).checkpoint.directory, checkpoint, layout)
        recipe = schema.load(tmp_path / "tiny.yaml", ("verify.when=always", "verify.kl=1", *overrides))
        return pipeline.build(recipe, checkpoint, tmp_path / "engine", Progress())

    return run


INT4 = ("precision.weights=int4", "precision.lm_head=bf16", "precision.group_size=32")
ASYMMETRIC = (*INT4, "precision.zero_point=true")


@pytest.mark.parametrize("layout, overrides", [
    (Layout("awq", 32), ASYMMETRIC), (Layout("awq", -1), ASYMMETRIC), (Layout("gptq", 32, zero_point=False), INT4),
    (Layout("gptq", 32, act_order=True), ASYMMETRIC), (Layout("gptq", 32), ("precision.weights=int8", "precision.lm_head=bf16")),
], ids=str)  # fmt: skip
def test_published_int4_is_as_exact_as_int8(build_int4, layout, overrides):
    """On a CPU codes are held to a step of int8."""
    report = build_int4(layout, *overrides)
    assert report.accuracy.kl < 0.002 and not report.segments  # int8 weights have 0.0006


@pytest.mark.parametrize("family", ["granite", "phi3", "qwen2", "gemma2", "granite-swa"])
def test_published_int4_of_other_families(build_int4, family):
    """Factors on what linears make; fused q|k|v and gate|up; biases; attention that transformers has in eager mode alone."""
    assert build_int4(Layout("gptq", 32, act_order=True), *ASYMMETRIC, family=family).accuracy.kl < 0.002


def test_another_version_of_zeros_is_packed_anew(build_int4, tiny, tmp_path):
    """The same files mean other weights by another config.json."""
    first = build_int4(Layout("gptq", 32), *ASYMMETRIC)
    packed = {path.name for path in (first.out / "weights").iterdir()}
    (checkpoint,) = (path for path in tmp_path.iterdir() if (path / "config.json").exists())
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (checkpoint / "config.json").write_text(json.dumps(config))
    pipeline.build(schema.load(tmp_path / "tiny.yaml", ("verify.when=always", "verify.kl=1", *ASYMMETRIC)), checkpoint, tmp_path / "second", Progress())
    assert len(packed - {path.name for path in (tmp_path / "second" / "weights").iterdir()}) >= 8  # each layer's four


def test_what_the_model_does_not_have_is_not_ignored(build_int4, tiny, tmp_path):
    """AutoAWQ scales activations of some families: without that the other weights mean something else."""
    report = build_int4(Layout("awq", 32), *ASYMMETRIC)
    (checkpoint,) = (path for path in tmp_path.iterdir() if (path / "model.safetensors").exists())
    name = "model.layers.0.mlp.act.scales"
    save_file(load_file(checkpoint / "model.safetensors") | {name: torch.ones(96)}, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=f"{name}: the model has no such weight"):
        pipeline.build(schema.load(tmp_path / "tiny.yaml", ASYMMETRIC), checkpoint, report.out.with_name("other"), Progress())


def test_codes_of_four_bits_are_not_rounded_to_four_bits_again(build_int4):
    with pytest.raises(UserError, match=re.escape("precision: the checkpoint stores model.layers.0.self_attn.q_proj.weight as int4g32z, and the recipe as int4g32; "
                                                  "expected the same codes, or more bits\nhint: weights: int4, group_size: 32, zero_point: true")):
        build_int4(Layout("awq", 32), *INT4)
