"""The protocol of `make peers`, with the worker that serves an engine."""

import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # for `import peers` under --import-mode=importlib

from peers.protocol import Worker, WorkerError  # noqa: E402


def worker(tmp_path, *command):
    return Worker([sys.executable, *map(str, command)], {}, tmp_path / "log")


def is_running(process):
    return Path(f"/proc/{process.pid}").exists()


def test_a_worker_tells_when_each_token_came(build, tmp_path):
    with worker(tmp_path, BENCHMARKS / "peers/slipway_worker.py", build("demo-llama/cpu-int8"), 1) as serving:
        together = serving.ask([[1, 2, 3], [4, 5]], 8)
        alone = serving.ask([[7] * 40], 1)
    assert [len(times) for times in together] == [8, 8] and len(alone[0]) == 1
    assert all(0 < times[0] and times == sorted(times) for times in (*together, *alone))
    assert not is_running(serving.process)


def test_what_a_worker_prints_is_no_answer(tmp_path):
    program = tmp_path / "noisy.py"
    program.write_text(f"""
import contextlib, os, sys
sys.path.append({str(BENCHMARKS / "peers")!r})
from protocol import serve

@contextlib.asynccontextmanager
async def model():
    os.system("echo noise")
    async def stream(prompt, new_tokens):
        print("noise")
        yield new_tokens
    yield stream

serve(model())
""")
    with worker(tmp_path, program) as serving:
        assert len(serving.ask([[1]], 3)[0]) == 3
    assert (tmp_path / "log").read_text().count("noise") == 2


def test_a_worker_that_ends_is_told(tmp_path):
    with worker(tmp_path, "-c", "raise SystemExit('no such model')") as serving:
        with pytest.raises(WorkerError, match="ended"):
            serving.ask([[1]], 1)
    assert "no such model" in (tmp_path / "log").read_text()


def test_nothing_is_left_of_a_worker_that_hangs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with worker(tmp_path, "-c", "import subprocess; subprocess.run(['sleep', '600'])") as serving:
            raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.killpg(serving.process.pid, 0)
