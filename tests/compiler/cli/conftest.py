"""A command line that runs in this process, a stand-in for the engine behind it, and a small true engine directory."""

import io
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from slipway.compiler.cli import exits
from slipway.runtime import manifest as m
from slipway.runtime.errors import RequestError
from slipway.runtime.requests import RequestMetrics


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, monkeypatch):
    """cli("run", "engine", "Hello") -> exit code, stdout, stderr."""

    def call(*arguments, input=b""):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input)))
        capsys.readouterr()
        code = exits.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@dataclass
class Delta:
    text: str
    token_ids: list
    finish_reason: str | None = None


@dataclass
class Completion:
    text: str
    token_ids: list
    finish_reason: str
    metrics: RequestMetrics = RequestMetrics(queue_s=0.001, ttft_s=0.01, total_s=0.05, inter_token_s=0.02)


class FakeRequest:
    """Streams the words; interrupt_after: Ctrl-C comes after so many."""

    def __init__(self, words, interrupt_after=None):
        self.words, self.interrupt_after, self.cancelled = words, interrupt_after, False

    def __iter__(self):
        for number, word in enumerate(self.words):
            if number == self.interrupt_after:
                raise KeyboardInterrupt
            yield Delta(word, [number])

    def cancel(self):
        self.cancelled = True

    def result(self):
        return Completion("".join(self.words), list(range(len(self.words))), "stop")


class FakeEngine:
    """Answers with `words`; notes what it was asked."""

    words = ["Hel", "lo", " world"]
    interrupt_after = None
    load_error = None

    def __init__(self):
        self.prompts, self.sampling, self.requests, self.closed = [], [], [], False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def submit(self, prompt, sampling):
        if len(prompt) > 200:
            raise RequestError("prompt", "too long", "at most 200 characters")
        self.prompts.append(prompt)
        self.sampling.append(sampling)
        self.requests.append(FakeRequest(self.words, self.interrupt_after))
        return self.requests[-1]

    def render_chat(self, messages):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


@pytest.fixture
def fake(monkeypatch):
    """The engine that every load gives; `fake.loaded` holds what each load asked for."""
    engine = FakeEngine()
    engine.loaded = []

    def load(path, **options):
        if engine.load_error:
            raise engine.load_error
        engine.loaded.append((path, options))
        return engine

    module = types.SimpleNamespace(Engine=types.SimpleNamespace(load=load), SamplingParams=lambda **values: values)
    monkeypatch.setitem(sys.modules, "slipway.runtime.engine", module)
    return engine


@pytest.fixture
def manifest() -> m.Manifest:
    """Two layers of three steps and an ONNX segment."""
    row, wanted, touched = m.Operand(0, 0, 256), m.Operand(1, 0, 256), (256,)

    def step(name, op, weights=(), cost=None, symbol="attend", segment=None):
        return m.Step(name, op, "tokens", (row,), (row,), weights, symbol, segment, cost=cost or {})

    steps = []
    for layer in range(2):
        linear = {"weight_bytes": 4096, "token_bytes": 512, "token_flops": 8192}
        steps += [
            step(f"model.layers.{layer}.mlp.up_proj", "aten::linear", (layer,), linear, "multiply"),
            step(f"model.layers.{layer}.self_attn", "slipway::paged_attention", (), {"kv_bytes": 128, "kv_flops": 256}),
        ]
    steps.append(step("model.strange", "segment", symbol=None, segment="0.onnx"))
    weights = tuple(m.WeightRef(f"up{layer}", f"{layer}.bin", 4096) for layer in range(2))
    plan = m.Plan(
        arena_bytes=1 << 16, shared_scratch_bytes=0, local_scratch_bytes=0, vocab_size=64, logits=wanted, library="kernels.so",
        buffers=(m.Buffer("x", "f32", 0, m.Size(per_token=256)), m.Buffer("logits", "f32", 1 << 14, m.Size(per_logit_row=256))),
        weights=weights, kernels={"multiply": m.Needs(touched, touched, (4096,)), "attend": m.Needs(touched, touched, ())}, steps=tuple(steps),
        kv=m.KvCache(layers=2, block_size=32, block_bytes=4096, num_blocks=16),
    )  # fmt: skip
    return m.Manifest(
        model="tiny", target=m.Target("cpu", "avx2", ("avx2", "fma", "f16c")), limits=m.Limits(128, 64, 4, 4), plan=plan, files={},
        recipe={"precision": {"weights": "int4", "group_size": 64, "lm_head": "int8", "kv_cache": "bf16"}}, slipway_version="0.1.0",
    )  # fmt: skip


@pytest.fixture
def engine_dir(tmp_path, manifest) -> Path:
    """An engine directory whose manifest is true and whose files are filled with zeros."""
    folder = tmp_path / "engine"
    files = {"weights/0.bin": 4096, "weights/1.bin": 4096, "kernels/kernels.so": 100, "segments/0.onnx": 50}
    for name, size in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    entries = {name: m.hash_file(folder / name) for name in files}
    m.Manifest(**{**vars(manifest), "files": entries}).write(folder)
    return folder
