"""Engines of Llama-3.1-8B's shape on the GPU that is here, beside transformers on the same GPU.

    python tests/benchmarks/bench_gpu_engines.py --json out.json      on a machine with a GPU
    python tests/benchmarks/bench_gpu_engines.py --emulate            a tiny shape, by emulation: shows that it works

Random weights, prompts of 2,048 random tokens, 128 new ones of each, greedy. SHARE is what reading the step's bytes once would take at the rate of a copy
within the GPU's memory, measured in the same run, over what the step took. transformers runs in bfloat16 with a static cache, which
it compiles, and torch's scaled_dot_product_attention. An engine is removed when it is measured, and the checkpoint at the end: 40 GB at most.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import click
import torch
import transformers

sys.path.append(str(pathlib.Path(__file__).resolve().parent))
from bench_gpu import target_here  # noqa: E402
from peers.random_checkpoint import write_checkpoint  # noqa: E402
from peers.report import markdown  # noqa: E402

from slipway.compiler.cli.bench import Bench, Load, limits_of, measure_loaded  # noqa: E402
from slipway.compiler.quantities import rate_text, seconds_text  # noqa: E402
from slipway.compiler.target import ACTIVATION_FACTORS, Target  # noqa: E402
from slipway.runtime import _native  # noqa: E402
from slipway.runtime.engine import Engine  # noqa: E402
from slipway.runtime.machine import usable_cores  # noqa: E402

LLAMA_31_8B = transformers.LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    max_position_embeddings=131_072, rms_norm_eps=1e-5, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
)  # fmt: skip
TINY = transformers.LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=256, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="bfloat16",
)  # fmt: skip
PRECISIONS = {
    "bf16": (),
    "fp8": ("precision.weights=fp8",),
    "fp8, activations fp8": ("precision.weights=fp8", "precision.activations=fp8"),
    "nvfp4, activations nvfp4": ("precision.weights=nvfp4", "precision.activations=nvfp4"),
    "int4": ("precision.weights=int4", "precision.group_size=128"),
    "nvfp4": ("precision.weights=nvfp4",),
    "fp8, KV fp8": ("precision.weights=fp8", "precision.kv_cache=fp8"),
}
RECIPE = """schema: 1
model: bench
target: {target}
precision: {{weights: bf16}}
limits: {{max_sequence_length: {length}, max_batch_tokens: {tokens}, max_sequences: {sequences}, kv_cache_tokens: {kv_tokens}}}
verify: {{when: never}}
"""


@dataclass(frozen=True)
class Peer:
    """Tokens a second of `sequences` together, and when the first of them came."""

    sequences: int
    tokens_per_s: float
    ttft_s: float


@dataclass(frozen=True)
class Engined:
    """load_s: until the first token, in a process that runs."""

    bench: Bench
    load_s: float


@dataclass(frozen=True)
class Work:
    config: transformers.LlamaConfig
    load: Load
    precisions: tuple[str, ...]

    @property
    def length(self) -> int:
        return self.load.prompt + self.load.new


FULL = Work(LLAMA_31_8B, Load([1, 8, 64], 2048, 128, [2048], 16), tuple(PRECISIONS))
SMALL = Work(TINY, Load([1, 2], 12, 3, [12], 4), ("bf16", "nvfp4"))


def build(work: Work, precision: str, target: str, folder: pathlib.Path) -> pathlib.Path:
    most = max(work.load.batch)
    recipe, out = folder / "recipe.yaml", folder / "engine"
    recipe.write_text(RECIPE.format(target=target, length=work.length, tokens=max(64, min(8192, most * work.load.prompt)), sequences=most,
                                    kv_tokens=most * (-(-work.length // 32) + 1) * 32))  # fmt: skip
    settings = [part for setting in PRECISIONS[precision] for part in ("--set", setting)]
    command = [pathlib.Path(sys.executable).with_name("slipway"), "build", recipe, "--model", folder / "checkpoint", "-o", out, "--force", *settings]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr, env={**os.environ, "SLIPWAY_CACHE": str(folder / "cache")})
    return out


def measure(work: Work, precision: str, target: str, folder: pathlib.Path, emulate: bool) -> Engined:
    engine_dir, started = build(work, precision, target, folder), time.perf_counter()
    with Engine.load(engine_dir, kv_tokens=None) as engine:
        engine.generate([list(range(work.load.start))])
        load_s = time.perf_counter() - started
        limits = (lambda: (1e9, None)) if emulate else limits_of(True, 1)
        result = measure_loaded(engine, work.load, 1 if emulate else 3, usable_cores(), None, limits)
    shutil.rmtree(engine_dir)
    shutil.rmtree(folder / "cache" / "weights", ignore_errors=True)  # of this precision; 16 GB in bf16
    return Engined(result, load_s)


def transformers_rates(work: Work, checkpoint: pathlib.Path) -> list[Peer]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa").to(device).eval()
    found = []
    for sequences in work.load.batch:
        prompts = torch.randint(work.config.vocab_size, (sequences, work.load.prompt), generator=torch.Generator().manual_seed(sequences)).to(device)

        def seconds(new: int) -> float:
            options = {"cache_implementation": "static"} if device == "cuda" else {}
            started = time.perf_counter()
            model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None,
                           pad_token_id=0, **options)  # fmt: skip
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        seconds(work.load.new)  # compiles
        first, whole = (min(seconds(new) for _ in range(2)) for new in (1, work.load.new))
        found.append(Peer(sequences, sequences * (work.load.new - 1) / max(whole - first, 1e-9), first))
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def report(work: Work, gpu: str, engines: dict[str, Engined], peers: list[Peer]) -> str:
    batches = work.load.batch
    header = ["", *(f"{count} at once" for count in batches), f"prompt of {work.load.prompt}", "load to first token"]
    rows = []
    for precision, engined in engines.items():
        bench = engined.bench
        cells = [f"{d.tokens_per_s:,.0f} ({d.share:.0%}, {seconds_text(d.overhead_s)})" for d in bench.decoding]
        rows.append([f"Slipway {precision}", *cells, f"{bench.prefill[0].tokens_per_s:,.0f} tok/s, {seconds_text(bench.prefill[0].cold_s)}", seconds_text(engined.load_s)])
    rows.append(["transformers bf16", *(f"{p.tokens_per_s:,.0f}" for p in peers), f"{work.load.prompt / peers[0].ttft_s:,.0f} tok/s, {seconds_text(peers[0].ttft_s)}", ""])
    read = rate_text(next(iter(engines.values())).bench.read_bytes_per_s, "B")
    return f"{gpu}, a copy moves {read}; tokens/s, the share of what reading the step's bytes at that rate allows, and the time of a step in which nothing is computed\n\n{markdown(header, rows)}"


def factors_of(settings: tuple[str, ...]) -> str:
    """What activations are multiplied as in an engine with these settings of its recipe."""
    stated = dict(setting.split("=") for setting in settings)
    return ACTIVATION_FACTORS[stated.get("precision.activations", "bf16")]


@click.command()
@click.option("--emulate", is_flag=True, help="A tiny shape, by emulation.")
@click.option("--precision", "chosen", multiple=True, type=click.Choice(list(PRECISIONS)), help="Only this; may be given again.")
@click.option("--folder", type=click.Path(path_type=pathlib.Path), default="build/gpu-engines", show_default=True, help="Where checkpoint and engines are made.")
@click.option("--json", "json_path", type=click.Path(path_type=pathlib.Path), help="Write the results there too.")
def main(emulate: bool, chosen: tuple[str, ...], folder: pathlib.Path, json_path: pathlib.Path | None) -> None:
    """Print what engines of Llama-3.1-8B's shape do on this GPU, beside transformers."""
    work = SMALL if emulate else FULL
    gpu, target = ("an emulated GPU", Target("sm90")) if emulate else (_native.first_gpu()[0], target_here())
    if emulate:
        os.environ["SLIPWAY_DEVICE"] = "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        place = pathlib.Path(inside)
        write_checkpoint(work.config, place / "checkpoint", "cpu" if emulate else "cuda")
        precisions = chosen or [name for name in work.precisions if factors_of(PRECISIONS[name]) in target.gpu.factors]
        engines = {precision: measure(work, precision, target.kind, place, emulate) for precision in precisions}
        peers = transformers_rates(work, place / "checkpoint")
    click.echo(report(work, gpu, engines, peers))
    if json_path:
        found = {"gpu": gpu, "engines": {name: dataclasses.asdict(b) for name, b in engines.items()}, "transformers": list(map(dataclasses.asdict, peers))}
        json_path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
