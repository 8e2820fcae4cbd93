"""The demo checkpoints are what training.json says; the script that trains them gives the same weights twice."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from slipway.recipes import train_demo
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

NAMES = sorted(train_demo.CONFIGS)
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors"}
TOKENIZER_FILES = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
every_demo = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def folder(name: str) -> Path:
    return train_demo.RECIPES / name / "checkpoint"


def training(name: str) -> dict:
    return json.loads((folder(name) / "training.json").read_text())


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder(name))


@cache
def model(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)


def completion(name: str, tokens: list[int], max_tokens: int) -> str:
    output = model(name).generate(torch.tensor([tokens]), max_new_tokens=max_tokens)
    return tokenizer(name).decode(output[0, len(tokens) :])


@every_demo
def test_a_checkpoint_is_one_small_bf16_file(name):
    assert {path.name for path in folder(name).iterdir()} == MODEL_FILES | TOKENIZER_FILES | {"training.json"}
    assert (folder(name) / "model.safetensors").stat().st_size <= 8_000_000
    with safe_open(folder(name) / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}


@every_demo
def test_config_is_the_one_that_the_script_states(name):
    config, stated = model(name).config.to_dict(), train_demo.CONFIGS[name].to_dict()
    assert {key for key in stated if config[key] != stated[key]} - {"_name_or_path"} == {"architectures", "dtype"}


@every_demo
def test_special_tokens_have_fixed_ids(name):
    assert tokenizer(name).convert_tokens_to_ids(train_demo.SPECIAL_TOKENS) == [0, 1, 2, 3, 4, 5]
    for owner in (tokenizer(name), model(name).config, model(name).generation_config):
        assert (owner.bos_token_id, owner.eos_token_id, owner.pad_token_id) == (0, 1, 2)
    assert len(tokenizer(name)) == model(name).config.vocab_size


@every_demo
@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_tokenizer_round_trips_any_text(name, text):
    tokens = tokenizer(name)(text)["input_ids"]
    assert tokens[0] == train_demo.BEGIN and tokenizer(name).decode(tokens[1:]) == text


@every_demo
@pytest.mark.parametrize("text", ["", " a ,b . n't", "if x:\n\treturn  1\r\n\n", "🙂é\u200d\0", "<|end|> <|user|>", "<|end"])
def test_tokenizer_round_trips_awkward_text(name, text):
    assert tokenizer(name).decode(tokenizer(name)(text, add_special_tokens=False)["input_ids"]) == text


@every_demo
def test_pieces_of_an_emoji_are_single_bytes(name):
    pieces = tokenizer(name)("🙂", add_special_tokens=False)["input_ids"]
    assert len(pieces) == 4 and tokenizer(name).decode(pieces) == "🙂"


@every_demo
def test_chat_template(name):
    messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "bisect: find"}]
    text = "<|begin|><|system|>\nBe terse.<|end|>\n<|user|>\nbisect: find<|end|>\n"
    chat = tokenizer(name).apply_chat_template
    assert chat(messages, tokenize=False) == text
    assert chat(messages, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>\n"
    assert chat(messages)["input_ids"] == tokenizer(name)(text, add_special_tokens=False)["input_ids"]


@every_demo
def test_recorded_perplexity_is_reproduced(name):
    found = train_demo.perplexity(model(name), tokenizer(name), train_demo.HELDOUT.read_text())
    assert found == pytest.approx(training(name)["heldout_perplexity_bf16"], rel=0.02)


@every_demo
def test_models_learnt_from_their_text(name):
    recorded = training(name)
    assert recorded["heldout_perplexity_fp32"]["per_byte"] < 2.3
    assert recorded["heldout_perplexity_bf16"] == pytest.approx(recorded["heldout_perplexity_fp32"], rel=0.01)


@every_demo
def test_greedy_output_reads_like_python(name):
    text = completion(name, tokenizer(name)("class Point:\n    def __init__(self")["input_ids"], 40)
    assert ":\n        self." in text


@every_demo
def test_an_answer_in_chat_is_a_function_and_ends(name):
    messages = [{"role": "user", "content": "__len__: Return the number of items."}]
    prompt = tokenizer(name).apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    code, end, rest = completion(name, prompt, 300).partition("<|end|>")
    assert (end, rest) == ("<|end|>", "")
    assert ast.parse(code).body[0].name == "__len__"


def test_held_out_files_are_no_training_text():
    text = train_demo.HELDOUT.read_text()
    assert len(text.encode()) <= 40_000
    names = [document.removeprefix("<|begin|># ").partition("\n")[0] for document in text.split("<|end|>")[:-1]]
    assert len(names) == 9 and all((Path(sysconfig.get_path("stdlib")) / name).is_file() for name in names)
    assert not set(names) & {name for name, _ in train_demo.source_files()}
    notice = train_demo.HELDOUT.with_name("heldout.LICENSE.txt").read_text()
    assert all(name in notice.partition("---")[0] for name in names) and "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in notice


def test_a_documented_function_becomes_a_conversation():
    source = 'class A:\n    def f(self):\n        """Say so.\n\n        Twice.\n        """\n\n    def g(self): pass\n'
    code = 'def f(self):\n    """Say so.\n\n    Twice.\n    """'
    assert list(train_demo.conversations(source)) == [f"<|user|>\nf: Say so.<|end|>\n<|assistant|>\n{code}"]


def test_same_seed_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train_demo, "documents", lambda: [train_demo.HELDOUT.read_text()])

    def weights(seed: int, out: Path) -> bytes:
        arguments = ["demo-llama", "--steps", "2", "--seed", str(seed), "--out", str(out)]
        result = CliRunner().invoke(train_demo.main, arguments, catch_exceptions=False)
        assert "step 2/2  loss " in result.output and result.exit_code == 0
        return (out / "model.safetensors").read_bytes()

    assert weights(0, tmp_path / "a") == weights(0, tmp_path / "b") != weights(1, tmp_path / "c")
