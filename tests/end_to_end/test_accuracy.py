"""The engines' own kernels say what transformers says in float32."""

import json
import pathlib

import numpy as np
import pytest
import torch
from slipway.compiler.machine import host_isas
from slipway.recipes import catalog
from slipway.runtime.engine import Engine, SamplingParams
from slipway.runtime.manifest import Manifest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

MODELS = ("demo-llama", "demo-qwen3")
ISAS = host_isas()
GREEDY = [*((model, None) for model in MODELS), *((MODELS[0], isa) for isa in ISAS[:-1])]  # None: the strongest this host has
KL_LIMITS = {"bf16": 0.002, "int8": 0.005, "int4": 0.05}
TOP1_LIMITS = {"bf16": 0.98, "int8": 0.95, "int4": 0.8}
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 24, 64
TIE = 0.25  # of a logit: closer candidates may change places under bfloat16 rounding (transformers' own bfloat16: up to 0.4 here)


def checkpoint_of(model):
    return catalog.find(f"{model}/cpu-bf16").parent / "checkpoint"


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


@pytest.fixture(scope="module")
def prompts(model):
    """Token ids [PROMPTS, PROMPT_TOKENS] from all over the held-out text."""
    text = pathlib.Path(checkpoint_of(model)).parent.parent.joinpath("heldout.txt").read_text()
    ids = Tokenizer.from_file(str(checkpoint_of(model) / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    starts = np.linspace(0, len(ids) - PROMPT_TOKENS, PROMPTS).astype(int)
    return torch.tensor([ids[start : start + PROMPT_TOKENS] for start in starts])


@torch.no_grad()
def reference(model, prompts):
    """Greedy tokens of transformers in float32, and the logits each came from."""
    network = AutoModelForCausalLM.from_pretrained(checkpoint_of(model), dtype=torch.float32)
    out = network.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
                           do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True)  # fmt: skip
    return out.sequences[:, PROMPT_TOKENS:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("model, isa", GREEDY, indirect=["model"])
def test_greedy_tokens_are_those_of_transformers_up_to_ties(build, model, isa, prompts):
    """An engine for a weaker ISA passes the build's divergence limit too: it would not be there else."""
    wanted, logits = reference(model, prompts)
    directory = build(f"{model}/cpu-bf16", *([f"cpu.isa={isa}"] if isa else []))
    assert Manifest.read(directory).target.isa == (isa or ISAS[-1])
    with Engine.load(directory) as engine:
        found = engine.generate(prompts.tolist(), SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True))
    gaps = {}
    for i, completion in enumerate(found):
        tokens = torch.tensor(completion.token_ids)
        assert len(tokens) == NEW_TOKENS
        if (differ := (tokens != wanted[i]).nonzero()).numel():
            first = int(differ[0])
            gaps[i] = float(logits[i, first].max() - logits[i, first, tokens[first]])
    print(f"{model}: {PROMPTS - len(gaps)} of {PROMPTS} equal; logit gaps where they part: {sorted(gaps.values())}")
    assert all(gap < TIE for gap in gaps.values()), gaps
    assert len(gaps) < PROMPTS / 2
