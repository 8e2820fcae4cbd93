"""Engines for GPUs, whole: they say what transformers says with the weights as they hold them. In emulation; with --gpu, on the GPU here."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from greedy import as_held, check_greedy, checkpoint_of, few_prompts, prompts_of, reference_of
from kernel_bench import target_here
from published import Layout, publish
from transformers import AutoModelForCausalLM

from slipway.compiler import pipeline, verify
from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.progress import Progress
from slipway.compiler.target import GPUS
from slipway.recipes import catalog, schema
from slipway.runtime import gpu
from slipway.runtime.engine import Engine
from slipway.runtime.errors import EngineError, MachineError
from slipway.runtime.manifest import Manifest, Size
from slipway.runtime.manifest_checks import check_manifest
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.score import Scorer

pytestmark = pytest.mark.gpu
ON_GPU = bool(os.environ.get("SLIPWAY_TESTS_ON_GPU"))  # set by tests/conftest.py
SEED = 3
WEIGHTS = {
    "fp8": ("precision.weights=fp8",),
    "fp8_block": ("precision.weights=fp8_block",),
    "int8": ("precision.weights=int8",),
    "int4": ("precision.weights=int4", "precision.group_size=32"),
    "nvfp4": ("precision.weights=nvfp4",),
    "mxfp4": ("precision.weights=mxfp4",),
}
HERE = (f"target={target_here()}",) if ON_GPU else ()  # what a recipe is to be built for
MULTIPLIES_FP4 = not ON_GPU or "e2m1" in target_here().gpu.factors
CUBLAS_FP8 = (*HERE, "precision.weights=fp8", "precision.activations=fp8", "gpu.cublas=17")
CUBLAS_NVFP4 = ("precision.weights=nvfp4", "precision.activations=nvfp4", "gpu.cublas=17")
ENGINES = [
    *((f"demo-llama/{kind}-bf16", ()) for kind in GPUS if not ON_GPU),
    *(("demo-llama/sm90-bf16", (*HERE, *overrides)) for overrides in ((), *WEIGHTS.values()) if overrides or ON_GPU),
    ("demo-llama/sm90-bf16", (*HERE, "gpu.cublas=17")),
    ("demo-qwen3/sm90-bf16", CUBLAS_FP8),
    ("demo-qwen3/sm90-bf16", HERE),
    ("demo-qwen3/sm90-bf16", (*HERE, *WEIGHTS["nvfp4"])),
    ("demo-llama/sm90-bf16", (*HERE, "precision.kv_cache=fp8")),
    ("demo-qwen3/sm90-bf16", (*HERE, "precision.kv_cache=int8")),
]


def choose_device(monkeypatch, seed):
    """The emulation, or the GPU that is here."""
    monkeypatch.delenv("SLIPWAY_DEVICE", raising=False)
    if not ON_GPU:
        monkeypatch.setenv("SLIPWAY_DEVICE", f"emulated:{seed}")


@pytest.mark.parametrize("name, overrides", ENGINES, ids=lambda part: part if isinstance(part, str) else "-".join(p.split("=")[1] for p in part))
def test_greedy_tokens_are_those_of_transformers_up_to_ties(build, monkeypatch, name, overrides):
    choose_device(monkeypatch, SEED)
    directory, model = build(name, *overrides), name.partition("/")[0]
    assert json.loads((directory / "verify.json").read_text())["tokens"] >= 512
    with Engine.load(directory) as engine:
        check_greedy(engine, few_prompts(model), *reference_of(model, schema.load(catalog.find(name), overrides).precision))


def test_published_int4_is_held_exactly(monkeypatch, tmp_path):
    """As near to transformers with the weights that the codes stand for as a bf16 engine is to its checkpoint."""
    choose_device(monkeypatch, SEED)
    publish(checkpoint_of("demo-llama"), tmp_path / "checkpoint", Layout("gptq", 128, act_order=True))
    overrides = ("precision.weights=int4", "precision.lm_head=bf16", "precision.zero_point=true", "precision.group_size=128")
    recipe = schema.load(catalog.find("demo-llama/sm90-bf16"), (*HERE, *overrides))
    assert pipeline.build(recipe, tmp_path / "checkpoint", tmp_path / "engine", Progress()).accuracy.kl < 2e-4


@pytest.fixture
def engine_directory(build):
    return build("demo-llama/sm90-bf16", *HERE)


def test_the_tokens_it_draws_are_those_the_host_draws(engine_directory, monkeypatch):
    """A request for logprobs is the host's. One runs at a time, so that both see the same logits to the bit."""
    choose_device(monkeypatch, SEED)
    (prompt,) = prompts_of("demo-llama", 1, 9).tolist()
    with Engine.load(engine_directory) as engine:
        for options in ({"temperature": 0.9}, {"temperature": 1.2, "top_p": 0.8, "repetition_penalty": 1.3, "logit_bias": {17: 2.0}, "min_tokens": 4}):
            asked = SamplingParams(max_tokens=8, seed=5, **options)
            (by_gpu,), (by_host,) = engine.generate([prompt], asked), engine.generate([prompt], replace(asked, logprobs=0))
            assert by_gpu.token_ids == by_host.token_ids
        assert engine.metrics()["steps_ahead_total"] == 7  # of the request that is drawn on the GPU and needs no token on the host


def logits_of_steps(directory, tokens):
    """A prompt in one chunk; in two, with decoding steps and drafts after it."""
    scorer = Scorer(directory)
    blocks = np.arange(scorer.num_blocks, dtype=np.int32)[None]

    def step(begin, end):
        rows = np.arange(end - begin, dtype=np.int32)
        lengths, kv_lens = np.array([0, end - begin], np.int32), np.array([end], np.int32)
        return scorer.executor.run(tokens[begin:end], rows + np.int32(begin), lengths, kv_lens, blocks, rows)

    return np.concatenate([step(*part) for part in ((0, 97), (0, 37), (37, 90), (90, 91), (91, 96), (96, 97))])


def test_no_order_of_threads_changes_a_bit(engine_directory, monkeypatch):
    tokens = prompts_of("demo-llama", 1, 100)[0].numpy().astype(np.int32)
    found = []
    for seed in (0, 1, 2, 3):
        choose_device(monkeypatch, seed)
        found.append(logits_of_steps(engine_directory, tokens))
    assert np.isfinite(found[0]).all()
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_chunks_drafts_and_single_tokens_change_rounding_alone(engine_directory, monkeypatch):
    choose_device(monkeypatch, 0)
    logits = logits_of_steps(engine_directory, prompts_of("demo-llama", 1, 100)[0].numpy().astype(np.int32))
    whole, parts = logits[:97], logits[97:]
    assert np.abs(whole - parts).max() < 0.006 * np.abs(whole).max()


def test_a_directory_names_its_gpu_and_holds_its_code(engine_directory):
    manifest = Manifest.read(engine_directory)
    assert ON_GPU or (manifest.target.kind, manifest.target.isa) == ("sm90", "sm_90a")
    for needs in manifest.plan.kernels.values():
        assert (engine_directory / "kernels" / needs.image).read_bytes()[:4] == b"\x7fELF"
        assert needs.launches


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_run_it_all_the_same(engine_directory, monkeypatch):
    monkeypatch.delenv("SLIPWAY_DEVICE", raising=False)
    with pytest.raises(MachineError, match="built for sm90: .*--emulate, or SLIPWAY_DEVICE=emulated, runs it on the CPU, slowly"):
        Engine.load(engine_directory)


@pytest.mark.parametrize(
    "part, damage, message",
    [
        ("matmul", {"factors": "f16"}, r"matmul.factors: 'f16', expected one of bf16, e4m3, e2m1"),
        ("matmul", {"results": "e4m3"}, r"matmul.results: 'e4m3', expected one of bf16, f32"),
        ("matmul", {"outputs": 1 << 20}, r"matmul: 1048576 x \d+ in rows of \d+, expected a matrix within the kernel's weight"),
        ("matmul", {"inputs": 1 << 16}, r"matmul: \d+ x 65536 in rows of \d+, expected a matrix within"),
        ("matmul", {"source": None}, r"matmul.source: .*"),
        ("matmul", {"destination": None}, r"matmul.destination: rows of \d+ bytes, expected at most the \d+ that the kernel is given"),
        ("source", {"row_bytes": 16}, r"matmul.source: 16 bytes a row from 0 on, expected rows of \d+ bytes within \d+ of scratch"),
        ("destination", {"offset": 24}, r"matmul.destination: \d+ bytes a row from 24 on, expected rows"),
        ("destination", {"row_bytes": 1 << 24}, r"matmul.destination: 16777216 bytes a row"),
    ],
)
def test_a_multiplication_stays_within_what_it_is_given(build, part, damage, message):
    check_damaged(Manifest.read(build("demo-qwen3/sm90-bf16", *CUBLAS_FP8)), part, damage, message)


@pytest.mark.skipif(not MULTIPLIES_FP4, reason="tensor cores that do not multiply e2m1")
@pytest.mark.parametrize(
    "part, damage, message",
    [
        ("matmul", {"weight": 2}, r"matmul: \d+ x \d+ in rows of \d+, expected a matrix within the kernel's weight"),
        ("matmul", {"weight": -1}, r"matmul.weight: -1, expected .*"),
        ("matmul", {"outputs": 528}, r"matmul: 528 x \d+ in rows of \d+, expected a matrix within the kernel's weight"),  # 16 more, as large as their scales
        ("matmul", {"inputs": 40, "weight_columns": 40}, r"matmul: 40 of 40 numbers in a row, expected whole rows of e2m1 in the scratch, multiples of 64"),
        ("matmul", {"source": None}, r"matmul: .* expected whole rows of e2m1 in the scratch"),
        ("source", {"row_bytes": 1 << 12}, r"matmul.source: 4096 bytes a row from 0 on, expected rows of \d+ bytes within \d+ of scratch"),
        ("source", {"row_bytes": 1 << 61}, r"matmul.source.row_bytes: 2305843009213693952, expected 1..2\^30"),
    ],
)
def test_scales_of_groups_stay_within_what_a_multiplication_is_given(build, part, damage, message):
    check_damaged(Manifest.read(build("demo-llama/sm100-bf16", *HERE, *CUBLAS_NVFP4)), part, damage, message)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda needs: {"inputs": needs.inputs[:1]}, r"matmul.adds: rows of \d+ bytes, expected at most the 0 that the kernel is given"),
        (lambda needs: {"inputs": (needs.inputs[0], needs.inputs[1] - 4)}, r"matmul.adds: rows of \d+ bytes, expected at most the \d+ that the kernel is given"),
        (lambda needs: {"gathers": True}, r"matmul: a multiplication by cuBLASLt in a step that gathers rows"),
    ],
)
def test_what_a_multiplication_adds_has_its_rows(build, damage, message):
    manifest = Manifest.read(build("demo-llama/sm90-bf16", *HERE, "gpu.cublas=17"))
    symbol, needs = kernel_with(manifest, lambda matmul: matmul.adds)
    with pytest.raises(EngineError, match=message):
        check_with(manifest, symbol, replace(needs, **damage(needs)))


@pytest.mark.skipif(not MULTIPLIES_FP4, reason="tensor cores that do not multiply e2m1")
def test_scales_behind_the_last_row_count(build):
    manifest = Manifest.read(build("demo-llama/sm100-bf16", *HERE, *CUBLAS_NVFP4))
    symbol, needs = kernel_with(manifest, lambda matmul: matmul.source)
    each = needs.shared_scratch.per_token  # of a number of rows that pieces of scales are whole for

    assert manifest.limits.max_batch_tokens % 128 == 0
    check_with(manifest, symbol, replace(needs, shared_scratch=Size(per_token=each)))
    with pytest.raises(EngineError, match="matmul.source: .* of scratch"):
        check_with(manifest, symbol, replace(needs, shared_scratch=Size(per_token=each - 1)))


def kernel_with(manifest, holds):
    """(symbol, needs) of the first kernel with a multiplication of that kind."""
    return next((symbol, needs) for symbol, needs in manifest.plan.kernels.items() if any(launch.matmul and holds(launch.matmul) for launch in needs.launches))


def check_with(manifest, symbol, needs):
    check_manifest(replace(manifest, plan=replace(manifest.plan, kernels=manifest.plan.kernels | {symbol: needs})), "engine")


def check_damaged(manifest, part, damage, message):
    symbol, needs = kernel_with(manifest, lambda matmul: matmul.source)

    def damaged(launch):
        if not launch.matmul:
            return launch
        whole = replace(launch.matmul, **damage) if part == "matmul" else replace(launch.matmul, **{part: replace(getattr(launch.matmul, part), **damage)})
        return replace(launch, matmul=whole)

    with pytest.raises(EngineError, match=message):
        check_with(manifest, symbol, replace(needs, launches=tuple(map(damaged, needs.launches)), inputs=(8,), outputs=(8,)))


def test_fp8_activations_are_measured_where_steps_of_the_measurement_would_not_have_them(build):
    settings = (("gpu.cublas=17",), ("gpu.cublas=300",), ("gpu.cublas=300", "limits.max_sequences=3"))  # the last: steps of 12 tokens
    first, later, small = [json.loads((build("demo-qwen3/sm90-bf16", *CUBLAS_FP8[:-1], *each) / "verify.json").read_text()) for each in settings]
    assert first["limit"] == 0.02 and later["kl"] == pytest.approx(first["kl"], rel=1e-3)
    assert small["kl"] == pytest.approx(first["kl"], rel=1e-2)  # other steps round otherwise


def test_what_makes_activations_makes_the_codes_that_linears_multiply(build):
    kernels = Manifest.read(build("demo-qwen3/sm90-bf16", *CUBLAS_FP8)).plan.kernels
    steps = {symbol: [launch.function.removeprefix(symbol) for launch in needs.launches if launch.min_rows <= 17 <= (launch.max_rows or 17)] for symbol, needs in kernels.items()}
    of_linears = sorted(names for names in steps.values() if "cublasLtMatmul" in names)
    by_norms, by_gated, by_itself = ["cublasLtMatmul", "_finish"], ["cublasLtMatmul", "_codes"], ["_quantize", "cublasLtMatmul", "_finish"]
    assert of_linears == sorted([by_norms, by_gated, by_norms, by_itself])  # q|k|v, gate|up, down, o, which reads what attention makes
    assert ["_codes"] in steps.values()


@pytest.mark.skipif(not MULTIPLIES_FP4, reason="tensor cores that do not multiply e2m1")
def test_nvfp4_activations_cost_what_they_cost_transformers(build):
    """On average: noise of a rounding makes other codes of some, and other tokens soon after."""
    name, overrides = "demo-llama/sm100-bf16", (*HERE, *CUBLAS_NVFP4)
    directory, precision = build(name, *overrides), schema.load(catalog.find(name), overrides).precision
    windows = verify.token_windows(Checkpoint(checkpoint_of("demo-llama")), Manifest.read(directory).limits.max_sequence_length, verify.WINDOWS_EMULATED)

    def logprobs(change):
        network = AutoModelForCausalLM.from_pretrained(checkpoint_of("demo-llama"), dtype=torch.float32)
        for path, linear in network.named_modules():
            if isinstance(linear, torch.nn.Linear):
                change(path, linear)
        with torch.no_grad():
            return torch.log_softmax(network(torch.from_numpy(windows.astype(np.int64))).logits, -1)

    checkpoint = logprobs(lambda path, linear: None)

    def cost(precision):
        return float((checkpoint.exp() * (checkpoint - logprobs(as_held(precision)))).sum(-1).mean())

    found = json.loads((directory / "verify.json").read_text())
    assert found["tokens"] == windows.size and found["kl"] == pytest.approx(cost(precision), rel=0.15)
    assert cost(precision.model_copy(update={"activations": "bf16"})) < 0.6 * found["kl"]


@pytest.mark.skipif(not MULTIPLIES_FP4, reason="tensor cores that do not multiply e2m1")
def test_an_engine_with_nvfp4_activations_has_them_in_prompts_alone(build, monkeypatch, tmp_path):
    choose_device(monkeypatch, SEED)
    served = build("demo-llama/sm100-bf16", *HERE, *CUBLAS_NVFP4)
    tokens, found = prompts_of("demo-llama", 1, 100)[0].numpy().astype(np.int32), []
    for directory in (served, verify._with_coded_activations(served, tmp_path / "always")):
        found.append(logits_of_steps(directory, tokens))
    always_in_prompts = [97 + begin for begin in range(90)]
    assert np.array_equal(found[0][:97], found[1][:97]) and np.array_equal(found[0][always_in_prompts], found[1][always_in_prompts])
    assert not np.array_equal(found[0][97 + 90], found[1][97 + 90])  # a token alone
    with Engine.load(served) as engine:
        (completion,) = engine.generate([tokens.tolist()], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    assert len(completion.token_ids) == 12


@pytest.mark.parametrize("name, settings", [("fp8", CUBLAS_FP8), *(("nvfp4", ("target=sm100", *CUBLAS_NVFP4)) for _ in range(not ON_GPU))])
def test_a_recipe_with_activations_that_no_step_has_is_refused(tmp_path, name, settings):
    settings = [word for setting in settings[:-1] for word in ("--set", setting)]
    refused = slipway("build", "demo-qwen3/sm90-bf16", "-o", tmp_path / "engine", *settings)
    assert refused.returncode == 2 and f"precision.activations: no linear has {name} activations in steps of up to" in refused.stderr


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_cublaslt_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu, "CUBLASLT", "libno-such-library.so")
    with pytest.raises(MachineError, match="e: no cuBLASLt .*, expected it, for linears of many rows; pip install nvidia-cublas, or build with gpu.cublas: never"):
        gpu.load_cublaslt("e")


def slipway(*words):
    return subprocess.run([Path(sys.executable).with_name("slipway"), *map(str, words)], capture_output=True, text=True)


def test_explain_predicts_for_a_card_without_a_gpu(engine_directory):
    h200, h100 = (json.loads(slipway("explain", engine_directory, "--json", *options).stdout) for options in ((), ("--card", "h100")))
    assert (h200["limits"]["name"], h100["limits"]["name"]) == ("h200", "h100")
    allowed = [sum(step["allowed_s"] for step in card["steps"]) for card in (h200, h100)]
    assert 0 < allowed[0] < allowed[1]
    refused = slipway("explain", engine_directory, "--card", "a100")
    assert (refused.returncode, refused.stderr) == (2, "--card: a100 with an engine for sm90; expected h200, h100\n")
    for command in (["explain", engine_directory, "--measure"], ["bench", engine_directory]):
        refused = slipway(*command, "--emulate")
        assert refused.returncode == 2 and "times of an emulated GPU say nothing of a real one" in refused.stderr
    checked = slipway("check", engine_directory, "--emulate")
    assert checked.returncode == 0 and "loads here, by emulation on the CPU: demo-llama for sm90" in checked.stdout


def test_a_dry_run_predicts_for_every_card_of_the_target(tmp_path):
    done = slipway("build", "demo-llama/sm90-bf16", "-o", tmp_path / "engine", "--dry-run")
    assert done.returncode == 0 and "by h200's limits" in done.stdout and "by h100's limits" in done.stdout
    assert not (tmp_path / "engine").exists()


def mappings():
    return Path("/proc/self/maps").read_text().count("\n")


@pytest.mark.skipif(ON_GPU, reason="about what the emulation takes")
def test_an_emulated_engine_takes_few_of_the_mappings_a_process_may_have(engine_directory, monkeypatch):
    choose_device(monkeypatch, SEED)
    before = mappings()
    with Engine.load(engine_directory) as engine:
        engine.generate([list(range(5, 40)), [7]], SamplingParams(max_tokens=3))
        assert mappings() - before < 2000


@pytest.mark.skipif(ON_GPU, reason="a GPU does not see it")
def test_a_kernel_that_fails_ends_the_engine_with_its_name(engine_directory, tmp_path, monkeypatch):
    choose_device(monkeypatch, SEED)
    directory = tmp_path / "engine"
    shutil.copytree(engine_directory, directory)
    manifest = Manifest.read(directory)
    symbol = next(step.symbol for step in manifest.plan.steps if step.op == "slipway::gated_linear")
    needs = manifest.plan.kernels[symbol]
    starved = replace(needs, launches=tuple(replace(launch, shared_bytes=16) for launch in needs.launches))
    replace(manifest, plan=replace(manifest.plan, kernels=manifest.plan.kernels | {symbol: starved})).write(directory)
    with Engine.load(directory) as engine:
        with pytest.raises(EngineError, match=f"GPU: a step: {symbol}_upto8: block .* bytes of shared memory in a launch that gives 16"):
            engine.generate([[5, 6, 7]])
        with pytest.raises(EngineError, match="it has failed: .* bytes of shared memory"):
            engine.generate([[5, 6, 7]])
    monkeypatch.setenv("SLIPWAY_BLOCKING", "1")  # for a GPU, which does not say which of a graph's kernels failed
    step = next(step.name for step in manifest.plan.steps if step.symbol == symbol)
    with Engine.load(directory) as engine, pytest.raises(EngineError, match=f"GPU: {re.escape(step)}: {symbol}_upto8: block"):
        engine.generate([[5, 6, 7]])
