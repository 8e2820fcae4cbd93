"""What `make gpu` measures with, in tiny shapes, on an emulated GPU."""

import json
import subprocess
import sys
from pathlib import Path

KERNELS, CROSSOVERS, ENGINES = (Path(__file__).with_name(name) for name in ("bench_gpu.py", "bench_crossovers.py", "bench_gpu_engines.py"))


def test_every_kernel_is_measured(tmp_path):
    done = subprocess.run([sys.executable, KERNELS, "--emulate", "--json", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["limits"]["read_bytes_per_s"] > 0 and found["limits"]["flops_per_s"] > 0
    kernels = {result["kernel"] for result in found["results"]}
    attention = {f"attention {name} {cache}" for name in ("decode", "prefill") for cache in ("bf16", "fp8")}
    assert kernels == {"gate|up nvfp4", "gate|up bf16", "down nvfp4", "down bf16", *attention, "torch: gate|up bf16", "torch: attention prefill bf16"}
    assert all(result["seconds"] > 0 and result["share"] > 0 for result in found["results"])
    assert "| attention prefill bf16 | 1 x 40 tokens |" in done.stdout


def test_crossovers_are_written_as_builds_read_them(tmp_path):
    table = tmp_path / "table.json"
    table.write_text('{"sm80": {"4096 x 4096 bf16": 96}, "sm100": {"of another day": 1}}')
    done = subprocess.run([sys.executable, CROSSOVERS, "--emulate", "--write", table], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(table.read_text())
    assert found["sm80"] == {"4096 x 4096 bf16": 96}
    assert found["sm100"].keys() == {f"{shape} {fmt}" for shape in ("gated 128 x 64", "64 x 128") for fmt in ("bf16", "fp8", "nvfp4")}
    assert all(rows in (32, 64, None) for rows in found["sm100"].values())


def test_engines_are_measured_beside_transformers(tmp_path):
    command = [sys.executable, ENGINES, "--emulate", "--folder", tmp_path / "work", "--json", tmp_path / "engines.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "engines.json").read_text())
    assert found["engines"].keys() == {"bf16", "nvfp4"}
    for engine in found["engines"].values():
        bench = engine["bench"]
        assert [d["sequences"] for d in bench["decoding"]] == [1, 2] and all(d["tokens_per_s"] > 0 for d in bench["decoding"])
        assert bench["prefill"][0]["cold_s"] > 0 and engine["load_s"] > 0
    assert [peer["sequences"] for peer in found["transformers"]] == [1, 2]
    assert "| Slipway nvfp4 |" in done.stdout and "| transformers bf16 |" in done.stdout
    assert not list((tmp_path / "work").iterdir())
