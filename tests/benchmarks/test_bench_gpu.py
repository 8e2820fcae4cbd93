"""bench_gpu.py's own calls, in tiny shapes, on an emulated GPU."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("bench_gpu.py")


def test_every_kernel_is_measured(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--emulate", "--json", tmp_path / "gpu.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["limits"]["read_bytes_per_s"] > 0 and found["limits"]["flops_per_s"] > 0
    kernels = {result["kernel"] for result in found["results"]}
    attention = {f"attention {name} {cache}" for name in ("decode", "prefill") for cache in ("bf16", "fp8")}
    assert kernels == {"gate|up nvfp4", "gate|up bf16", "down nvfp4", "down bf16", *attention}
    assert all(result["seconds"] > 0 and result["share"] > 0 for result in found["results"])
    assert "| attention prefill bf16 | 1 x 40 tokens |" in done.stdout
