"""Mixed requests for some seconds, a few of them refused, cut short or cancelled, leave no KV block owned; `make soak` is minutes of it."""

import pathlib
import subprocess
import sys

SOAK = pathlib.Path(__file__).parents[1] / "benchmarks/soak.py"


def test_no_block_leaks(build):
    engine = build("demo-llama/cpu-int8")
    done = subprocess.run([sys.executable, SOAK, engine, "--requests", "60", "--minutes", "0.05"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("60 requests"), done.stdout
