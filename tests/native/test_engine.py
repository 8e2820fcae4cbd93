"""Whole native engines, kernels included, under random requests, built with sanitizers and with guard pages around their memory.

AddressSanitizer and UBSan watch the runtime and what kernels do by plain loads and stores. Masked loads and tile loads escape
both: guard pages behind every weight, buffer, scratch and the KV cache catch those.
"""

import dataclasses
import os
import subprocess

import pytest
import sanitized
from published import Layout, publish
from slipway.compiler import pipeline
from slipway.compiler.cache import digest
from slipway.compiler.progress import Progress
from slipway.compiler.machine import host_isas
from slipway.plugins import registry
from slipway.plugins.draw_tokens import plugin as draw_tokens
from slipway.recipes import schema
from slipway.runtime.manifest import Manifest
from written_plan import Words

ISAS = host_isas()
ENGINES = 4
LENGTH = 300
ODD = {"vocab_size": 1037, "hidden_size": 72, "intermediate_size": 100, "max_position_embeddings": LENGTH}  # no multiple of any block
SHAPES = {"qwen3": ODD | {"attention_bias": True}, "phi3": ODD | {"num_hidden_layers": 1, "head_dim": 24}}
FORMATS = """
  weights: bf16
  lm_head: int8
  overrides:
    - {match: "*layers.0.self_attn.o_proj", weights: int8}
    - {match: "*layers.0.mlp.down_proj", weights: int4, group_size: 64}
    - {match: "*layers.0.mlp.*", weights: int4, group_size: 32}
    - {match: "*layers.1.self_attn.o_proj", weights: int4, group_size: 32, zero_point: true}
    - {match: "*layers.1.mlp.*", weights: int4, group_size: 128}"""
EACH_KIND = """
  weights: int4
  group_size: 128
  zero_point: true
  lm_head: bf16
  overrides:
    - {match: "*.mlp.down_proj", weights: int8}
    - {match: "*.o_proj", weights: int4, group_size: 32, zero_point: true}"""  # stored as codes, in the order of activations
PRECISIONS = {"qwen3": FORMATS, "phi3": EACH_KIND}
BUILDS = [*(("phi3", isa) for isa in ISAS), ("qwen3", ISAS[-1])]  # each kind of weight on each ISA, every format on one
RECIPE = """schema: 1
model: {family}
checkpoint: {checkpoint}
target: cpu
cpu: {{isa: {isa}}}
precision: {precision}
limits: {{max_sequence_length: {length}, max_batch_tokens: 200, max_sequences: 8, kv_cache_tokens: 480}}
runtime: {{deterministic: {deterministic}}}
verify: {{when: never}}
"""
ENVIRONMENT = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    made = {}

    def get(family):
        from tiny_models import Tiny

        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            Tiny(family, made[family], **SHAPES[family])
            if family == "phi3":
                plain, made[family] = made[family], made[family] / "int4"
                publish(plain, made[family], Layout("gptq", 32, act_order=True), only=".o_proj")
        return made[family]

    return get


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory):
    """engine(family, isa) -> an engine directory whose kernels are compiled with the sanitizers."""
    made = {}

    def get(family, isa):
        if (family, isa) not in made:
            folder = tmp_path_factory.mktemp("engine")
            recipe = folder / "recipe.yaml"
            recipe.write_text(RECIPE.format(family=family, checkpoint=checkpoint(family), isa=isa, precision=PRECISIONS[family],
                                            length=LENGTH, deterministic=str(family == "phi3").lower()))  # fmt: skip
            loaded = schema.load(recipe)
            with pytest.MonkeyPatch.context() as patch:
                sanitize_kernels(patch)
                pipeline.build(loaded, loaded.checkpoint_dir, folder / "engine", Progress())
            made[family, isa] = folder / "engine"
        return made[family, isa]

    return get


def sanitize_kernels(patch):
    """Makes the pipeline's compiler add the flags; with a stage cache apart, which is kept as long as they stay the same."""
    script = f'#!/bin/sh\nexec {sanitized.COMPILER} "$@" -O1 -g1 {" ".join(sanitized.SANITIZERS)}\n'
    folder = sanitized.BUILD / f"kernels-{digest(script)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = folder / "compiler"
    compiler.write_text(script)
    compiler.chmod(0o755)
    patch.setenv("SLIPWAY_CXX", str(compiler))
    patch.setenv("SLIPWAY_CACHE", str(folder / "cache"))
    patch.setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0")  # for the build's trial, whose Python is not sanitized


def sources(memory):
    return [sanitized.HERE / "drive_engine.cpp", memory, *sanitized.native(sanitized.ENGINE)]


@pytest.fixture(scope="module")
def guarded():
    return sanitized.executable("drive_engine_guarded", sources(sanitized.HERE / "guarded_memory.cpp"))


def drive(executable, plan, engines=ENGINES):
    return subprocess.run([executable, plan, str(engines)], capture_output=True, text=True, timeout=600, env=ENVIRONMENT)


def check(result, *kinds):
    """Nothing was found, and the requests were such that each of `kinds` happened."""
    assert result.returncode == 0, result.stderr[-8000:]
    counts = {name: int(count) for name, count in map(str.split, result.stdout.splitlines())}
    print(counts)
    assert all(counts[f"{kind}_total"] > 0 for kind in (*kinds, "requests_finished", "requests_failed", "requests_cancelled")), counts


@pytest.mark.parametrize("family, isa", BUILDS)
def test_addresses_and_undefined_behaviour(engine, guarded, tmp_path, family, isa):
    plan = Words.of(engine(family, isa)).write(tmp_path / "plan")
    repeats_itself = family == "qwen3"
    check(drive(guarded, plan), "preemptions", "cached_tokens", *(["accepted_tokens"] if repeats_itself else []))


def test_mapped_files(engine, tmp_path):
    """With the runtime's own mappings, which have no guard pages."""
    mapped = sanitized.executable("drive_engine", sources(sanitized.NATIVE / "memory.cpp"))
    check(drive(mapped, Words.of(engine("phi3", ISAS[-1])).write(tmp_path / "plan")))


def test_the_engines_use_every_plugin_and_format(engine):
    steps = [step for family in SHAPES for step in Manifest.read(engine(family, ISAS[-1])).plan.steps]
    assert all(step.symbol for step in steps)
    used = {step.op for step in steps}
    assert all(used.intersection(plugin.ops) for plugin in registry.PLUGINS if plugin is not draw_tokens.PLUGIN), used  # a GPU's
    symbols = " ".join(step.symbol for step in steps)
    assert all(f"_{form}_" in symbols for form in ("bf16", "int8", "int4g32", "int4g64", "int4g32z", "int4g128", "int4g128z"))


# That the guards guard and the sanitizers see kernels.


@pytest.mark.parametrize("isa", ISAS)
def test_a_line_too_few_is_felt(engine, guarded, tmp_path, isa):
    """Of each weight, of the KV cache and of the scratch."""
    directory = engine("phi3", isa)
    plan = Manifest.read(directory).plan
    names = ["kv", *(f"weight{number}" for step in plan.steps if "linear" in step.op for number in step.weights)]
    for name in dict.fromkeys(names):
        result = drive(guarded, Words.of(directory, **{name: 64}).write(tmp_path / "plan"), 1)
        assert result.returncode != 0 and "AddressSanitizer" in result.stderr, f"{name}: {result.stderr}"


@pytest.mark.parametrize(
    "symbol, report",
    [
        ("write_past_the_stack", "stack-buffer-overflow"),
        ("overflow_a_sum", "signed integer overflow"),
        ("read_past_its_buffer", "AddressSanitizer: SEGV"),
    ],
)
def test_a_planted_bug_is_found(engine, guarded, tmp_path, symbol, report):
    words = Words.of(engine("phi3", ISAS[-1]))
    plan = words.manifest.plan
    step = dataclasses.replace(plan.steps[0], symbol=symbol)
    library = sanitized.library(sanitized.HERE / "planted_bugs.cpp")
    result = drive(guarded, words.write(tmp_path / "plan", dataclasses.replace(plan, steps=(step,)), library), 1)
    assert result.returncode != 0 and report in result.stderr, result.stderr[-4000:]
