"""`slipway inspect`, `check` and `explain` read a true manifest."""

import dataclasses
import json

import pytest
from slipway.compiler import machine
from slipway.compiler.cli.steps import Work, group_steps
from slipway.runtime import manifest as m
from slipway.runtime.errors import EngineError


@pytest.fixture
def limits(monkeypatch):
    """A machine that reads 1 kB/ms and multiplies 1 kFLOP/ms."""
    measured = machine.MachineLimits(threads=2, read_bytes_per_s=1e6, flops_per_s=1e6)
    monkeypatch.setattr(machine, "measure_limits", lambda threads: measured)


def test_inspect(cli, engine_dir, golden):
    outcome = cli("inspect", engine_dir)
    assert (outcome.code, outcome.err) == (0, "")
    golden("cli/inspect_output.txt", outcome.out)


def test_inspect_says_how_accurate_the_engine_is(cli, engine_dir):
    assert "\naccuracy       not verified\n" in cli("inspect", engine_dir).out
    (engine_dir / "verify.json").write_text(json.dumps({"kl": 0.0123, "top1": 0.987, "tokens": 256}))
    described = m.Manifest.read(engine_dir)
    files = described.files | {"verify.json": m.hash_file(engine_dir / "verify.json")}
    dataclasses.replace(described, files=files).write(engine_dir)
    assert "\naccuracy       verified: KL 0.012 nats a token, top-1 agreement 98.7% over 256 tokens\n" in cli("inspect", engine_dir).out
    assert json.loads(cli("inspect", engine_dir, "--json").out)["accuracy"]["kl"] == 0.0123


def test_inspect_says_what_an_automatic_cache_is(cli, engine_dir):
    described = m.Manifest.read(engine_dir)
    dataclasses.replace(described, recipe={"limits": {"kv_cache_tokens": "auto"}}).write(engine_dir)
    assert "auto: 512 tokens, 131 kB, or what half of the memory holds at load" in cli("inspect", engine_dir).out


def test_inspect_json(cli, engine_dir):
    value = json.loads(cli("inspect", engine_dir, "--json").out)
    assert value["model"] == "tiny" and value["limits"]["max_sequences"] == 4
    assert value["plan"][0] == {"name": "model.layers.*.mlp.up_proj", "op": "aten::linear", "times": 2, "weight_bytes": 8192}
    assert value["files"]["weights/0.bin"] == 4096


def test_inspect_refuses_what_is_no_engine(cli, tmp_path):
    outcome = cli("inspect", tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "expected an engine directory made by `slipway build`" in outcome.err


def test_check_says_it_loads(cli, fake, engine_dir):
    outcome = cli("check", engine_dir)
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{engine_dir}: loads here: tiny for cpu (avx2)\n", "")
    assert json.loads(cli("check", engine_dir, "--json").out) == {"loads": True, "reason": None}


def test_check_says_why_not(cli, fake, engine_dir):
    fake.load_error = EngineError("engine", "made for amx")
    outcome = cli("check", engine_dir)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "engine: made for amx\n")
    outcome = cli("check", engine_dir, "--json")
    assert outcome.code == 2 and json.loads(outcome.out) == {"loads": False, "reason": "engine: made for amx"}


def test_steps_are_grouped_over_layers_and_shared_weights_counted_once(manifest):
    linear, attention, segment = group_steps(manifest)
    assert (linear.name, linear.steps, linear.weight_bytes) == ("model.layers.*.mlp.up_proj", [0, 2], 8192)
    assert (attention.steps, segment.steps) == ([1, 3], [4])
    work = Work(sequences=3, context=10)
    assert (linear.bytes_moved(work), linear.flops(work)) == (2 * (4096 + 3 * 512), 2 * 3 * 8192)
    assert (attention.bytes_moved(work), attention.flops(work)) == (2 * 30 * 128, 2 * 30 * 256)


def test_explain(cli, engine_dir, limits, golden):
    outcome = cli("explain", engine_dir, "--batch", 2, "--context", 16)
    assert (outcome.code, outcome.err) == (0, "")
    golden("cli/explain_output.txt", outcome.out)


def test_explain_takes_what_as_many_sequences_hold(cli, engine_dir, limits):
    value = json.loads(cli("explain", engine_dir, "--batch", 4, "--json").out)
    assert value["work"] == {"sequences": 4, "context": 95}  # 16 blocks: three of 32 tokens each, and one kept free for each that runs


def test_explain_json(cli, engine_dir, limits):
    value = json.loads(cli("explain", engine_dir, "--json").out)
    assert value["work"] == {"sequences": 1, "context": 127}  # the engine holds 128 tokens of a sequence
    assert value["steps"][1]["bytes"] == 2 * 127 * 128 and value["steps"][1]["took_s"] is None


def test_explain_measures(cli, engine_dir, limits, fake, golden):
    fake.time_steps = lambda sequences, context: [0.1, 0.2, 0.1, 0.2, 0.05] if context == 118 else []  # of 128, beside what measuring adds
    outcome = cli("explain", engine_dir, "--measure")
    assert outcome.code == 0
    golden("cli/explain_measured.txt", outcome.out)
