"""The engines' own kernels say what transformers says in float32."""

import json

import pytest
from greedy import check_greedy, checkpoint_of, few_prompts, prompts_of, reference, reference_of
from published import Layout, publish
from slipway.compiler import pipeline
from slipway.compiler.machine import host_isas
from slipway.compiler.progress import Progress
from slipway.recipes import catalog, schema
from slipway.runtime.engine import Engine
from slipway.runtime.manifest import Manifest
from transformers import AutoConfig

MODELS = ("demo-llama", "demo-qwen3")
ISAS = host_isas()
GREEDY = [*((model, None) for model in MODELS), *((MODELS[0], isa) for isa in ISAS[:-1])]  # None: the strongest this host has
KL_LIMITS = {"bf16": 0.002, "int8": 0.005, "int4": 0.05}
TOP1_LIMITS = {"bf16": 0.98, "int8": 0.95, "int4": 0.8}
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 24, 64


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return request.param


@pytest.mark.parametrize("precision", KL_LIMITS)
def test_the_build_has_measured_its_divergence(build, model, precision):
    engine = build(f"{model}/cpu-{precision}")
    verified = json.loads((engine / "verify.json").read_text())
    assert 0 <= verified["kl"] <= verified["limit"] == KL_LIMITS[precision]
    assert verified["tokens"] >= 1024 and verified["top1"] > TOP1_LIMITS[precision]


@pytest.mark.parametrize("isa", ISAS[:-1])
def test_weaker_isas_keep_the_limit_of_int8(build, isa):
    """Each multiplies integer weights in an arithmetic of its own."""
    engine = build("demo-llama/cpu-int8", f"cpu.isa={isa}")
    assert json.loads((engine / "verify.json").read_text())["kl"] < KL_LIMITS["int8"] / 2


@pytest.mark.parametrize("weights, kl", {"fp8": 0.007, "fp8_block": 0.007, "nvfp4": 0.06, "mxfp4": 0.1}.items())
def test_small_floats_say_what_transformers_says_with_the_weights_they_hold(build, model, weights, kl):
    name, overrides = f"{model}/cpu-bf16", (f"precision.weights={weights}",)
    directory = build(name, *overrides)
    assert json.loads((directory / "verify.json").read_text())["kl"] < kl < schema.KL_LIMITS[weights]
    with Engine.load(directory) as engine:
        check_greedy(engine, few_prompts(model), *reference_of(model, schema.load(catalog.find(name), overrides).precision))


@pytest.mark.parametrize("model, layout", [
    ("demo-llama", Layout("awq", 128)), ("demo-qwen3", Layout("gptq", 64, zero_point=False, act_order=True)),
], ids=str)  # fmt: skip
def test_published_int4_is_held_as_exactly_as_int8(model, tmp_path, layout):
    publish(checkpoint_of(model), tmp_path / "checkpoint", layout)
    overrides = (f"precision.group_size={layout.group_size}", f"precision.zero_point={str(layout.zero_point).lower()}", "precision.lm_head=bf16")
    recipe = schema.load(catalog.find(f"{model}/cpu-int4"), overrides)
    accuracy = pipeline.build(recipe, tmp_path / "checkpoint", tmp_path / "engine", Progress()).accuracy
    assert accuracy.kl < KL_LIMITS["int8"] / 2 and accuracy.top1 > TOP1_LIMITS["int8"] and accuracy.limit == KL_LIMITS["int8"]


def test_int4_costs_more_than_int8_and_int8_more_than_bf16(build, model):
    kl = [json.loads((build(f"{model}/cpu-{p}") / "verify.json").read_text())["kl"] for p in ("bf16", "int8", "int4")]
    assert kl[0] < kl[1] < kl[2]


@pytest.mark.parametrize("precision", KL_LIMITS)
def test_an_int8_kv_cache_costs_little_and_takes_half_the_room(build, model, precision):
    plain, int8 = (build(f"{model}/cpu-{precision}", *overrides) for overrides in ((), ("precision.kv_cache=int8",)))
    kl = [json.loads((engine / "verify.json").read_text())["kl"] for engine in (plain, int8)]
    assert kl[1] < kl[0] + 0.0003 and kl[1] < KL_LIMITS[precision]
    head_dim = AutoConfig.from_pretrained(checkpoint_of(model)).head_dim
    blocks = [Manifest.read(engine).plan.kv.block_bytes for engine in (plain, int8)]
    assert blocks[1] / blocks[0] == (head_dim + 4) / (2 * head_dim)


@pytest.mark.parametrize("model, isa", GREEDY, indirect=["model"])
def test_greedy_tokens_are_those_of_transformers_up_to_ties(build, model, isa):
    """An engine for a weaker ISA passes the build's divergence limit too: it would not be there else."""
    prompts = prompts_of(model, PROMPTS, PROMPT_TOKENS)
    directory = build(f"{model}/cpu-bf16", *([f"cpu.isa={isa}"] if isa else []))
    assert Manifest.read(directory).target.isa == (isa or ISAS[-1])
    with Engine.load(directory) as engine:
        check_greedy(engine, prompts, *reference(model, prompts, NEW_TOKENS))
