"""A Hugging Face checkpoint directory: its config, its tensors by name straight from the mapped files, its tokenizer's files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from slipway.compiler.errors import UserError
from slipway.compiler.graph import WeightInfo

INDEX = "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EXTENDING_ROPES = ("linear", "dynamic", "yarn")  # max_position_embeddings counts the others' scaling already
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name. A tensor is a view of the mapped file: reading one touches its pages and no others.

    Raises UserError for a directory that is not a checkpoint this version can take.
    """

    def __init__(self, directory: pathlib.Path | str):
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise UserError(str(directory), "no such directory", "a Hugging Face checkpoint")
        self.config = _read_config(self.directory)
        self._shards = {path: _open(path) for path in _shard_paths(self.directory)}
        self._places = {name: path for path, shard in self._shards.items() for name in shard.keys()}
        self._check_index()

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[self._place(name)].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def info(self, name: str) -> WeightInfo:
        """Shape and stored type, without reading the tensor."""
        path = self._place(name)
        tensor = self._shards[path].get_slice(name)
        if tensor.get_dtype() not in DTYPES:
            raise UserError(f"{path}: {name}", f"type {tensor.get_dtype()}", ", ".join(DTYPES))
        return WeightInfo(tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()])

    def file_of(self, name: str) -> pathlib.Path:
        """The file that holds the tensor."""
        return self._place(name)

    def files(self) -> list[pathlib.Path]:
        """Every file a build depends on: config and tensors."""
        return [self.directory / "config.json", *self._shards]

    def tokenizer_files(self) -> list[pathlib.Path]:
        """Tokenizer, chat template and generation config, as far as they are there."""
        return [self.directory / name for name in TOKENIZER_FILES if (self.directory / name).exists()]

    @property
    def max_positions(self) -> int | None:
        """Tokens the model's positions reach, what a rotary scaling adds included; None where config.json does not say."""
        text = self.config.get_text_config()
        stated, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
        kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
        scaled = [
            int(kind["factor"] * (kind.get("original_max_position_embeddings") or stated))
            for kind in kinds
            if stated and kind.get("rope_type") in EXTENDING_ROPES and kind.get("factor")
        ]
        return max([stated, *scaled]) if stated else None

    def _place(self, name: str) -> pathlib.Path:
        if name not in self._places:
            raise UserError(str(self.directory), f"no tensor {name}", "every weight that config.json's model has")
        return self._places[name]

    def _check_index(self) -> None:
        index = self.directory / INDEX
        if not index.exists():
            return
        for name, shard in read_json(index)["weight_map"].items():
            if self._places.get(name) != self.directory / shard:
                raise UserError(f"{index}: {name}", f"not in {shard}", hint="download the checkpoint again")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read: {error}", "JSON") from None
    if not isinstance(data, dict):
        raise UserError(str(path), type(data).__name__, "a JSON object")
    return data


def _read_config(directory: pathlib.Path) -> PreTrainedConfig:
    path = directory / "config.json"
    if not path.exists():
        raise UserError(str(directory), "no config.json", "a Hugging Face checkpoint")
    data = read_json(path)
    if (quantization := data.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else repr(quantization)
        raise UserError(f"{path}: quantization_config", f"already quantized ({method})", "bf16, fp16 or fp32 weights",
                        "this version quantizes by itself: take the checkpoint this one was made from")  # fmt: skip
    model_type, architectures = data.get("model_type"), data.get("architectures") or []
    if not isinstance(model_type, str | None) or not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise UserError(f"{path}: model_type, architectures", f"{model_type!r}, {architectures!r}", "a name, and a list of names")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if known is None or architectures and known not in architectures:
        raise UserError(f"{path}: architectures", ", ".join(architectures) or f"model_type {model_type!r}",
                        "a causal language model that transformers knows")  # fmt: skip
    return _parse_config(path, directory)


def _parse_config(path: pathlib.Path, directory: pathlib.Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers' configs raise whatever their checks raise
        raise UserError(str(path), f"refused by transformers: {' '.join(str(error).split()):.400}") from error


def _shard_paths(directory: pathlib.Path) -> list[pathlib.Path]:
    index, single = directory / INDEX, directory / "model.safetensors"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
            raise UserError(f"{index}: weight_map", "not a table of file names", "tensor name: file name")
        return [directory / name for name in sorted(set(weight_map.values()))]
    if single.exists():
        return [single]
    hint = "convert it with transformers' save_pretrained" if list(directory.glob("*.bin")) else None
    raise UserError(str(directory), "no model.safetensors and no index of one", "weights as safetensors", hint)


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and pathlib.PurePath(name).name == name


def _open(path: pathlib.Path) -> Any:
    """The mapped file; its header and its length are checked."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(str(path), "no such file", hint="download the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(str(path), f"damaged: {error}", "a safetensors file", "download the checkpoint again") from None
