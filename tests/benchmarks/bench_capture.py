"""Time and memory of capture and passes on the shapes of real models, with checkpoints whose files are all holes.

python tests/benchmarks/bench_capture.py [MODEL ...]      prints a table
pytest tests/benchmarks/bench_capture.py                  checks the bounds
"""

from __future__ import annotations

import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from slipway.compiler.capture import build_on_meta, capture
from slipway.compiler.checkpoint import INDEX, Checkpoint
from slipway.compiler.model_hooks import Hooks
from slipway.passes.pipeline import run_passes

SHARD_BYTES = 4 << 30
MODELS = {  # name: config, at most seconds and GB
    "qwen3-0.6b": (
        transformers.Qwen3Config(
            vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True,
        ), 30, 2,
    ),
    "llama-70b": (
        transformers.LlamaConfig(
            vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
            num_key_value_heads=8, max_position_embeddings=131072,
        ), 120, 2,
    ),
}  # fmt: skip


def write_hollow_checkpoint(config: transformers.PreTrainedConfig, directory: pathlib.Path) -> None:
    """bf16 tensors of the model's shapes in sparse files: 140 GB that take no room."""
    Hooks().register()
    model, _ = build_on_meta(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    shards: list[dict] = [{}]
    offset = 0
    for name, parameter in model.named_parameters():
        size = 2 * math.prod(parameter.shape)
        if offset + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            offset = 0
        shards[-1][name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [offset, offset + size]}
        offset += size
    for number, header in enumerate(shards):
        text, end = json.dumps(header).encode(), max(entry["data_offsets"][1] for entry in header.values())
        with open(directory / f"model-{number}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    weight_map = {name: f"model-{number}.safetensors" for number, header in enumerate(shards) for name in header}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def measure(name: str) -> dict:
    """In this process: its peak memory counts."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_hollow_checkpoint(MODELS[name][0], pathlib.Path(folder))
        start = time.perf_counter()
        graph = capture(Checkpoint(folder), SimpleNamespace(max_sequence_length=8192))
        captured = time.perf_counter()
        steps = sum(node.op == "call_function" for node in run_passes(graph).nodes)
        passed = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"capture_s": captured - start, "passes_s": passed - captured, "peak_gb": peak, "nodes": steps}


def measure_apart(name: str) -> dict:
    return json.loads(subprocess.run([sys.executable, __file__, "--json", name], check=True, capture_output=True, text=True).stdout)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", MODELS)
def test_capture_is_quick_and_small(name):
    found, (_, seconds, gigabytes) = measure_apart(name), MODELS[name]
    assert found["capture_s"] < seconds and found["peak_gb"] < gigabytes


if __name__ == "__main__":
    if sys.argv[1:2] == ["--json"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        for name in sys.argv[1:] or MODELS:
            print(name, *(f"{key} {value:.3g}" for key, value in measure_apart(name).items()))
