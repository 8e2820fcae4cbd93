"""The whole way through the command line: the demo recipe is built, checked, explained and run, in true processes."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from slipway.recipes import catalog, schema

CODE = "import sys; from slipway.compiler.cli import main; sys.exit(main())"
PROMPT = "def read_lines(path):\n"


def command(*arguments):
    return [sys.executable, "-W", "error", "-c", CODE, *map(str, arguments)]


def slipway(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "engine"
    done = slipway("build", "demo-llama/cpu-bf16", "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{out}: built\n") and "verified: KL" in done.stdout
    assert re.fullmatch(r"(\[\d/7\] .*\n)+", done.stderr), done.stderr
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_build_that_is_stopped_leaves_nothing(engine, tmp_path, number, code):
    process = subprocess.Popen(command("build", "demo-llama/cpu-bf16", "--set", "runtime.deterministic=true", "-o", tmp_path / "engine"), stderr=subprocess.PIPE)
    wait_for(lambda: list(tmp_path.glob(".engine.*.draft")))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not list(tmp_path.iterdir())


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_run_prints_the_completion_alone(engine):
    options = [engine, PROMPT, "--max-tokens", 24, "--temperature", 0]
    streamed, whole, as_json = (slipway("run", *options, *more) for more in ([], ["--no-stream"], ["--json"]))
    value = json.loads(as_json.stdout)
    assert (value["finish_reason"], len(value["token_ids"])) == ("length", 24) and value["metrics"]["ttft_s"] > 0
    assert streamed.stdout.rstrip("\n") == whole.stdout.rstrip("\n") == value["text"].rstrip("\n")
    assert [done.returncode for done in (streamed, whole, as_json)] == [0] * 3
    assert re.fullmatch(r"24 tokens; the first after .*, then .* tokens/s\n", streamed.stderr)


def test_run_never_imports_torch(engine):
    code = f"import sys; from slipway.compiler.cli.exits import run; run({['run', str(engine), 'x', '--max-tokens', '1']!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnxruntime", "pydantic"} & set(done.stdout.split())


def test_ctrl_c_ends_a_run_cleanly(engine, tmp_path):
    """The completion is longer than the pipe that takes it, so that the run is under way whenever the signal comes."""
    size, err = 4096, tmp_path / "err"
    endless = command("run", engine, PROMPT, "--max-tokens", 2000, "--regex", rf"(.|\n){{{size + 1000}}}")
    with open(err, "wb") as stderr, subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=stderr, bufsize=0, pipesize=size) as process:
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert (process.returncode, err.read_text()) == (130, "interrupted\n")


def test_chat(engine):
    done = slipway("chat", engine, "--max-tokens", 8, "--temperature", 0, input="open a file\n/reset\nopen a file\n")
    assert done.returncode == 0, done.stderr
    half = len(done.stdout) // 2
    assert done.stdout and done.stdout[:half] == done.stdout[half:]


def test_a_prompt_that_is_too_long(engine):
    done = slipway("run", engine, "-", input="x " * 10_000)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"prompt: \d+ tokens, expected 1\.\.2047, one less than max_sequence_length\n", done.stderr)


def test_check_and_a_damaged_copy(engine, tmp_path):
    done = slipway("check", engine)
    assert (done.returncode, done.stderr) == (0, "") and ": loads here: demo-llama for cpu (" in done.stdout
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", engine, copy], check=True)
    weights = max((copy / "weights").iterdir(), key=lambda file: file.stat().st_size)
    weights.chmod(0o644)
    with open(weights, "r+b") as file:
        file.seek(1000)
        file.write(b"damaged!")
    done = slipway("check", copy)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "contents changed since the build" in done.stderr


def test_inspect_and_explain(engine):
    assert json.loads(slipway("inspect", engine, "--json").stdout)["recipe"] == recipe().resolved() | {"verify": {"when": "auto", "kl": 0.002}}
    done = slipway("explain", engine, "--batch", 2, "--context", 64, "--measure", "--json")
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)["steps"]
    assert {"aten::linear", "slipway::paged_attention"} <= {step["op"] for step in steps}
    assert all(step["took_s"] > 0 and step["allowed_s"] >= 0 for step in steps)


def recipe():
    return schema.load(catalog.find("demo-llama/cpu-bf16"))


def test_bench(engine):
    options = ["--batch", "1,3", "--prompt", 16, "--new", 8, "--prefill", 64, "--rounds", 1]
    text, as_json = (slipway("bench", engine, *options, *more) for more in ([], ["--json"]))
    value = json.loads(as_json.stdout)
    assert [d["sequences"] for d in value["decoding"]] == [1, 3] and [p["tokens"] for p in value["prefill"]] == [64]
    assert all(d["tokens_per_s"] > 0 and d["ttft_s"] > 0 and d["share"] > 0 for d in value["decoding"])
    assert value["read_bytes_per_s"] > 1e9 and value["flops_per_s"] > 1e9 and value["start_s"] > 0
    assert re.search(r"decode, 3 at once +\d.* tokens/s", text.stdout) and "prompt of 64" in text.stdout, text.stderr


def test_defaults_are_what_the_engine_holds(engine):
    measured, explained = (slipway(*command, engine, "--kv-tokens", 64, "--json") for command in (["bench", "--rounds", 1], ["explain", "--measure"]))
    bench = json.loads(measured.stdout)
    assert [d["sequences"] for d in bench["decoding"]] == [1] and [p["tokens"] for p in bench["prefill"]] == [63]
    assert json.loads(explained.stdout)["work"] == {"sequences": 1, "context": 54}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["bench", "--batch", "1,65"], "--batch: 65; expected at most 32, the engine's limits.max_sequences"),
        (["bench", "--batch", 1, "--prompt", 4000], "--prompt and --new: 4,002; expected at most"),
        (["bench", "--batch", 1, "--prefill", "16,4096"], "--prefill and a new token: 4,097; expected at most"),
        (["bench", "--batch", 8, "--kv-tokens", 512, "--new", 100], "--prompt and --new, of 8 at once: 102; expected at most 32, which"),
        (["explain", "--batch", 1000], "--batch: 1,000; expected at most 32"),
        (["explain", "--context", 5000], "--context and a new token: 5,001; expected at most"),
        (["explain", "--context", 2040, "--measure"], "--context and 10 new tokens, to measure: 2,050; expected at most 2,048"),
    ],
)
def test_more_than_an_engine_was_built_for(engine, arguments, found):
    command, *options = arguments
    done = slipway(command, engine, *options)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(found), done.stderr


def test_a_second_build_takes_everything_from_the_cache(engine):
    start = time.monotonic()
    done = slipway("build", "demo-llama/cpu-bf16", "-o", engine, "--force", "--why")
    assert done.returncode == 0, done.stderr
    why = [line for line in done.stdout.splitlines() if line.startswith(("graphs:", "objects:", "kernels:", "weights:"))]
    assert why and all(line.endswith(": cached") for line in why)
    assert time.monotonic() - start < 60


def test_dry_run_builds_nothing(tmp_path):
    done = slipway("build", "demo-llama/cpu-int8", "-o", tmp_path / "engine", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would be built" in done.stdout and "tokens/s for one sequence" in done.stdout
    assert not (tmp_path / "engine").exists()


def test_triton_writes_how_the_engine_is_served(engine, tmp_path):
    options = ["--threads", 1, "--kv-tokens", 512, "--max-queued", 7, "--no-verify", "--no-decoupled"]
    subprocess.run(command("triton", engine, "-o", tmp_path, "--name", "m", *options), check=True)
    config = (tmp_path / "m/config.pbtxt").read_text()
    for name, value in {"threads": "1", "kv_tokens": "512", "max_queued": "7", "verify": "false"}.items():
        assert f'key: "{name}" value {{ string_value: "{value}" }}' in config
    assert "decoupled: false" in config


def test_triton_serves_until_it_is_told_to_stop(engine, tmp_path):
    start = command("triton", engine, "-o", tmp_path / "repository", "--start", "--ports", 0, 0, 0)
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = until(process.stderr, "Ctrl-C stops the server")
        assert any("Triton is ready" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)
    assert (process.returncode, out, err) == (143, "", "")
    running = subprocess.run(["ps", "-e", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "repository") not in running


def until(stream, words):
    """The stream's lines up to the one with the words."""
    lines = [stream.readline()]
    while lines[-1] and words not in lines[-1]:
        lines.append(stream.readline())
    return lines
