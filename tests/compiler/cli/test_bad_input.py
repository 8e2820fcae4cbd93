"""Whatever is wrong with a checkpoint, a recipe or an engine: exit code 2, one clear message, nothing half-written."""

import json
import shutil

import pytest
from slipway.runtime import manifest
from tokenizers import decoders, models, Tokenizer

RECIPE = """
schema: 1
model: tiny
target: cpu
cpu: {threads: 1}
precision: {weights: bf16}
limits: {max_sequence_length: 64, max_batch_tokens: 32, max_sequences: 4, kv_cache_tokens: 256}
verify: {when: never}
"""


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A tiny Llama with a generation config, to be spoilt."""
    folder = shutil.copytree(tiny("llama").checkpoint.directory, tmp_path / "checkpoint")
    change(folder / "generation_config.json", do_sample=True, top_k=5, eos_token_id=2)
    return folder


def change(path, **values):
    """Sets keys of a JSON file, which need not be there."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **values}))


@pytest.fixture
def build(cli, checkpoint, tmp_path, monkeypatch, tmp_path_factory):
    """build(*arguments): `slipway build` of the checkpoint."""
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path_factory.getbasetemp() / "bad-input-cache"))
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return lambda *arguments: cli("build", tmp_path / "tiny.yaml", "--model", checkpoint, "-o", tmp_path / "engine", *arguments)


def refused(outcome, words, folder=None):
    """One message of a few lines; no engine, and no draft of one."""
    assert (outcome.code, outcome.out) == (2, ""), outcome
    assert words in outcome.err and "Traceback" not in outcome.err and len(outcome.err.splitlines()) <= 3, outcome.err
    if folder:
        assert not [path.name for path in folder.iterdir() if "engine" in path.name]


def generation(**values):
    return lambda folder: change(folder / "generation_config.json", **values)


def config(**values):
    return lambda folder: change(folder / "config.json", **values)


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def tokenizer(*spoils):
    """A sound tokenizer.json, so that what lies beside it is read."""

    def spoil(folder):
        Tokenizer(models.BPE()).save(str(folder / "tokenizer.json"))
        for each in spoils:
            each(folder)

    return spoil


def odd_token(folder):
    """A byte-level decoder, and a token outside of its alphabet."""
    odd = Tokenizer(models.BPE({"▁a": 0}, []))
    odd.decoder = decoders.ByteLevel()
    odd.save(str(folder / "tokenizer.json"))


SPOILT = {
    "top_k": (generation(top_k=-1), "generation_config.json: top_k: -1; expected a whole number from 0\nhint: a value in the recipe's sampling"),
    "temperature": (generation(temperature="hot"), "temperature: 'hot'; expected a number from 0"),
    "eos": (generation(eos_token_id=[2, 128]), "generation_config.json: eos_token_id: 128; expected token ids in 0..127"),
    "quantized": (config(quantization_config="int4"), "config.json: quantization_config: already quantized ('int4')"),
    "shape": (config(hidden_size=63), "config.json: refused by transformers: Class validation error for validator "),
    "experts": (config(num_local_experts=8), "config.json: num_local_experts: a mixture of 8 experts; expected a dense model"),
    "model_type": (config(model_type=["llama"]), "config.json: model_type, architectures: ['llama'], "),
    "architectures": (config(architectures="LlamaForCausalLM"), "'LlamaForCausalLM'; expected a name, and a list of names"),
    "nested": (text("config.json", "[" * 100_000), "config.json: cannot be read: "),
    "not UTF-8": (text("generation_config.json", b"\xff"), "generation_config.json: cannot be read: "),
    "generation config": (text("generation_config.json", "[]"), "generation_config.json: list; expected a JSON object"),
    "tokenizer": (text("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer: "),
    "a token of no bytes": (odd_token, "tokenizer.json: tokens without bytes: "),
    "tokenizer config": (tokenizer(text("tokenizer_config.json", "[]")), "tokenizer_config.json: list; expected a JSON object"),
    "special token": (tokenizer(text("tokenizer_config.json", '{"bos_token": 1}')), "tokenizer_config.json: bos_token: 1; expected a token's text"),
    "template": (tokenizer(text("tokenizer_config.json", '{"chat_template": 1}')), "chat_template: 1; expected a Jinja template"),
    "template's bytes": (tokenizer(text("chat_template.jinja", b"\xff")), "chat_template.jinja: byte 0 is not UTF-8"),
    "eos of a bad type": (generation(eos_token_id="</s>"), "eos_token_id: '</s>'; expected token ids"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_checkpoint(build, checkpoint, tmp_path, fault):
    spoil, words = SPOILT[fault]
    spoil(checkpoint)
    refused(build(), words, tmp_path)


def test_the_recipes_sampling_goes_before_a_spoilt_one(build, checkpoint, tmp_path):
    generation(top_k=-1)(checkpoint)
    assert build("--set", "sampling.top_k=0").code == 0
    assert json.loads((tmp_path / "engine/engine.json").read_text())["default_sampling"]["top_k"] == 0


def test_no_quantization_is_no_mistake(build, checkpoint):
    config(quantization_config=None)(checkpoint)
    assert build("--dry-run").code == 0


def test_no_end_of_text_is_no_mistake(build, checkpoint, tmp_path):
    generation(eos_token_id=None)(checkpoint)
    change(checkpoint / "config.json", eos_token_id=None)
    assert build().code == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "max_sequence_length: 1; expected a whole number from 2"),
        (97, "max_sequence_length: 97 tokens; expected at most 96\nhint: "),
        (999999999, "max_sequence_length: 999999999 tokens; expected at most 96"),
    ],
)
def test_lengths_no_engine_could_serve(build, tmp_path, value, words):
    refused(build("--set", f"limits.max_sequence_length={value}", "--set", "limits.kv_cache_tokens=auto"), words, tmp_path)


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 384),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 48}, 384),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}, 96),
    ],
)
def test_rotary_scaling_counts_as_length(build, checkpoint, tmp_path, rope, longest):
    change(checkpoint / "config.json", rope_parameters={"rope_theta": 1e4, **rope})
    at_most = lambda length: ("--dry-run", "--set", f"limits.max_sequence_length={length}", "--set", "limits.kv_cache_tokens=auto")  # noqa: E731
    assert build(*at_most(longest)).code == 0
    refused(build(*at_most(longest + 1)), f"expected at most {longest}\n", tmp_path)


def test_an_engine_that_could_not_be_verified_here(build, tmp_path, monkeypatch):
    from slipway.compiler import pipeline

    monkeypatch.setattr(pipeline, "host_isas", lambda: ["avx2"])
    monkeypatch.setattr(pipeline, "missing_flags", lambda isa: [f"flags of {isa}"])
    verified = ("--set", "verify.when=auto", "--set", "cpu.isa=avx512")
    refused(build(*verified), "cpu.isa: avx512: this CPU lacks flags of avx512, and the engine is to be verified on it", tmp_path)
    assert build("--dry-run", "--set", "cpu.isa=avx512").code == 0


def test_a_weight_that_is_no_number(build, checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    name = "model.layers.0.mlp.down_proj.weight"
    weights = load_file(checkpoint / "model.safetensors")
    weights[name][3, 0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    outcome = build("--set", "precision.weights=int8")
    assert outcome.code == 2 and f"\n{name}: weight of shape " in outcome.err and "Traceback" not in outcome.err
    assert not [path.name for path in tmp_path.iterdir() if "engine" in path.name]


def test_more_memory_than_there_is(build):
    outcome = build("--dry-run", "--set", f"limits.kv_cache_tokens={2**30}")
    assert outcome.code == 0 and "; more than the " in outcome.out + outcome.err


def test_what_does_not_load_is_not_published(build, tmp_path, monkeypatch):
    """A plan that the compiler believes in and the runtime refuses."""
    from slipway.compiler import pipeline

    monkeypatch.setattr(pipeline, "num_blocks_of", lambda *_: 0)
    outcome = build()
    assert outcome.code == 1 and "does not load" in outcome.err and "num_blocks" in outcome.err
    assert not [path.name for path in tmp_path.iterdir() if "engine" in path.name]


@pytest.mark.parametrize("key", ["max_sequence_length", "max_batch_tokens", "kv_cache_tokens"])
def test_numbers_beyond_all_machines(build, tmp_path, key):
    refused(build("--dry-run", "--set", f"limits.{key}={10**22}"), f"limits.{key}: {10**22}; expected ", tmp_path)


@pytest.mark.parametrize(
    ("out", "words"),
    [("file", "exists and is not an engine"), ("file/x", "cannot be made in "), ("/proc/x", "/proc/x: cannot be made in /proc: "), ("x" * 300, "File name too long"),
     ("x" * 250, "cannot be made in ")],
)  # fmt: skip
def test_a_place_no_engine_can_have(cli, build, tmp_path, out, words):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    refused(build("-o", tmp_path / out), words)
    assert sorted(tmp_path.iterdir()) == before


def test_a_cache_that_is_a_file(build, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path / "file"))
    refused(build(), f"environment: SLIPWAY_CACHE: {tmp_path / 'file'} is no folder; expected a folder", tmp_path)


@pytest.mark.parametrize(
    ("command", "words"),
    [("no-such-compiler -O1", "no-such-compiler -O1: cannot run the C++ compiler"), ("sh -c :", "sh -c :: no C++ compiler"), ("c++ '", "environment: SLIPWAY_CXX: ")],
)
def test_a_compiler_that_is_none(build, tmp_path, monkeypatch, command, words):
    monkeypatch.setenv("SLIPWAY_CXX", command)
    refused(build("--dry-run"), words, tmp_path)


def test_a_compiler_of_several_words(build, monkeypatch):
    monkeypatch.setenv("SLIPWAY_CXX", "env LC_ALL=C c++")
    assert build().code == 0


@pytest.fixture
def engine(build, checkpoint, tmp_path):
    tokenizer()(checkpoint)
    assert build().code == 0
    return tmp_path / "engine"


def nested(engine):
    (engine / "engine.json").write_text("[" * 100_000)


def resigned(**values):
    """engine.json edited, and its checksum made good."""

    def spoil(engine):
        body = json.loads((engine / "engine.json").read_text()) | values
        del body["checksum"]
        (engine / "engine.json").write_text(json.dumps({"checksum": manifest._checksum(body), **body}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nested, "engine.json: not JSON"),
        (resigned(recipe={"cpu": "two"}), "recipe.cpu: found str, expected a mapping"),
        (resigned(recipe={"cpu": {"threads": 10**9}}), "threads: 1000000000, expected at most 1024"),
        (resigned(recipe={"precision": []}), "recipe.precision: found list, expected a mapping"),
        (resigned(recipe={"limits": 8}), "recipe.limits: found int, expected a mapping"),
        (resigned(default_sampling={"top_k": -1}), "top_k: -1"),
        (resigned(files=[[]]), "files: found list"),
        (resigned(plan={}), "plan: no key 'arena_bytes'"),
    ],
)
def test_a_spoilt_engine(cli, engine, spoil, words):
    spoil(engine)
    refused(cli("check", engine), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{}/engine.json", "x"), "Not a directory, expected an engine directory"),
        (("x" * 5000, "x"), "File name too long"),
        (("{}", "\udcff"), "prompt: half of a surrogate pair, expected Unicode text"),
        (("{}", "x", "--stop", "x" * 5000), "stop: "),
        (("{}", "x", *["--stop", "x"] * 65), "stop: "),
        (("{}", "x", "--top-k", 2**31), "top_k: 2147483648, expected a whole number in 0..2^31-1"),
        (("{}", "x", "--max-tokens", 2**63), "max_tokens: 9223372036854775808"),
        (("{}", "x", "--kv-tokens", 10**22), "kv_tokens"),
        (("{}", "x", "--threads", 10**9), "threads: 1000000000, expected at most 1024"),
    ],
)
def test_a_run_that_cannot_be(cli, engine, arguments, words):
    refused(cli("run", *(str(argument).format(engine) for argument in arguments)), words)
