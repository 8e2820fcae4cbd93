"""Engines for GPUs, whole, in emulation: they say what transformers says with the weights as they hold them."""

import json

import numpy as np
import pytest
from greedy import check_greedy, prompts_of, reference

from slipway.compiler.target import GPUS
from slipway.quantization import formats
from slipway.recipes import catalog, schema
from slipway.runtime.engine import Engine
from slipway.runtime.errors import MachineError
from slipway.runtime.manifest import Manifest
from slipway.runtime.score import Scorer

SEED = 3
WEIGHTS = {
    "fp8": ("precision.weights=fp8",),
    "int8": ("precision.weights=int8",),
    "int4": ("precision.weights=int4", "precision.group_size=32"),
    "nvfp4": ("precision.weights=nvfp4",),
    "mxfp4": ("precision.weights=mxfp4",),
}
ENGINES = [
    *((f"demo-llama/{gpu}-bf16", ()) for gpu in GPUS),
    *(("demo-llama/sm90-bf16", overrides) for overrides in WEIGHTS.values()),
    ("demo-qwen3/sm90-bf16", ()),
    ("demo-qwen3/sm90-bf16", WEIGHTS["nvfp4"]),
]
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 24, 24


def held_by(name, overrides):
    """(path, weight of a linear) -> what an engine of the recipe multiplies with."""
    precision = schema.load(catalog.find(name), overrides).precision
    return lambda path, weight: formats.round_trip(weight, formats.parse(*precision.of(path)), rungs=False)


@pytest.mark.parametrize("name, overrides", ENGINES, ids=lambda part: part if isinstance(part, str) else "-".join(p.split("=")[1] for p in part))
def test_greedy_tokens_are_those_of_transformers_up_to_ties(build, monkeypatch, name, overrides):
    monkeypatch.setenv("SLIPWAY_DEVICE", f"emulated:{SEED}")
    directory, model = build(name, *overrides), name.partition("/")[0]
    assert json.loads((directory / "verify.json").read_text())["tokens"] >= 512
    prompts = prompts_of(model, PROMPTS, PROMPT_TOKENS)
    with Engine.load(directory) as engine:
        check_greedy(engine, prompts, *reference(model, prompts, NEW_TOKENS, held_by(name, overrides)))


@pytest.fixture
def engine_directory(build):
    return build("demo-llama/sm90-bf16")


def logits_of_steps(directory, tokens):
    """A prompt in one chunk and in two, and decoding steps after it."""
    scorer = Scorer(directory)
    blocks = np.arange(scorer.num_blocks, dtype=np.int32)[None]

    def step(begin, end):
        rows = np.arange(end - begin, dtype=np.int32)
        lengths, kv_lens = np.array([0, end - begin], np.int32), np.array([end], np.int32)
        return scorer.executor.run(tokens[begin:end], rows + np.int32(begin), lengths, kv_lens, blocks, rows)

    return np.concatenate([step(*part) for part in ((0, 90), (0, 37), (37, 90), (90, 91), (91, 96), (96, 97))])


def test_no_order_of_threads_changes_a_bit(engine_directory, monkeypatch):
    tokens = prompts_of("demo-llama", 1, 100)[0].numpy().astype(np.int32)
    found = []
    for seed in (0, 1, 2, 3):
        monkeypatch.setenv("SLIPWAY_DEVICE", f"emulated:{seed}")
        found.append(logits_of_steps(engine_directory, tokens))
    assert np.isfinite(found[0]).all()
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_chunks_of_a_prompt_change_rounding_alone(engine_directory, monkeypatch):
    monkeypatch.setenv("SLIPWAY_DEVICE", "emulated")
    logits = logits_of_steps(engine_directory, prompts_of("demo-llama", 1, 100)[0].numpy().astype(np.int32))
    np.testing.assert_allclose(logits[:90], logits[90:180], atol=0.1)


def test_a_directory_names_its_gpu_and_holds_its_code(engine_directory):
    manifest = Manifest.read(engine_directory)
    assert (manifest.target.kind, manifest.target.isa) == ("sm90", "sm_90a")
    for needs in manifest.plan.kernels.values():
        assert (engine_directory / "kernels" / needs.image).read_bytes()[:4] == b"\x7fELF"
        assert needs.launches


def test_without_a_gpu_it_says_how_to_run_it_all_the_same(engine_directory, monkeypatch):
    monkeypatch.delenv("SLIPWAY_DEVICE", raising=False)
    with pytest.raises(MachineError, match="built for a GPU: .*--emulate, or SLIPWAY_DEVICE=emulated, runs it on the CPU, slowly"):
        Engine.load(engine_directory)
