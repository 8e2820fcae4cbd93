"""A model's shape  ->  a checkpoint of it with random weights, and a tokenizer as large as its vocabulary."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

QWEN3_06B = transformers.Qwen3Config(
    vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, max_position_embeddings=40_960, rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    architectures=["Qwen3ForCausalLM"], dtype="bfloat16",
)  # fmt: skip
DEVIATION = 0.02  # of every weight; those of norms are 1


def write_checkpoint(config: transformers.PreTrainedConfig, folder: Path, device: str = "cpu") -> None:
    """Always the same weights for the same device, which draws them."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in transformers.AutoModelForCausalLM.from_config(config).named_parameters()}
    draw = torch.Generator(device).manual_seed(0)
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, DEVIATION, generator=draw).cpu() if len(shape) > 1 else torch.ones(shape, dtype=torch.bfloat16)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(config.vocab_size, folder)


def write_tokenizer(vocab_size: int, folder: Path) -> None:
    """Of bytes and merges of two and three of them: loading one takes its time, as it would with the real model's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(_merges(letters), max(0, vocab_size - len(letters))))
    tokens = letters + [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _merges(letters: list[str]) -> Iterator[tuple[str, str]]:
    yield from itertools.product(letters, letters)
    for left, right, last in itertools.product(letters, repeat=3):
        yield left + right, last
