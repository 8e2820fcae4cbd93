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
from slipway.compiler.int4_linears import Int4Linears
from slipway.quantization import published
from slipway.quantization.published import Published

INDEX = "model.safetensors.index.json"
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EXTENDING_ROPES = ("linear", "dynamic", "yarn")  # max_position_embeddings counts the others' scaling already
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name. A tensor is a view of the mapped file: reading one touches its pages and no others. What AutoAWQ or GPTQ made of a linear's
    weight is one tensor, a StoredInt4, by the weight's name, its inputs in the order of its groups (`order_of`).

    quantization: how linears are stored that are; None: none is. Raises UserError for a directory that is not a checkpoint this version can take.
    """

    def __init__(self, directory: pathlib.Path | str):
        self.directory = pathlib.Path(directory)
        if not self.directory.is_dir():
            raise UserError(str(directory), "no such directory", "a Hugging Face checkpoint")
        self.config, self.quantization = _read_config(self.directory)
        self._shards = {path: _open(path) for path in _shard_paths(self.directory)}
        self._places = {name: path for path, shard in self._shards.items() for name in shard.keys()}
        self._check_index()
        self._int4 = Int4Linears.find(self.quantization, self._places, self._where, self._shape, self._read) if self.quantization else Int4Linears()
        parts = self._int4.parts()
        self._names = dict.fromkeys(name for name in (*self._places, *self._int4.weights) if name not in parts)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._int4.orders:
            return self._int4.orders[name]
        return self._int4.read(name, self._read) if name in self._int4.weights else self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def info(self, name: str) -> WeightInfo:
        """Shape and stored type, without reading the tensor."""
        if name in self._int4.orders:
            return WeightInfo(tuple(self._int4.orders[name].shape), torch.int64)
        if name in self._int4.weights:
            return self._int4.weights[name].info
        shape, dtype = self._shape(name)
        if dtype not in DTYPES:
            raise UserError(self._where(name), f"type {dtype}", ", ".join(DTYPES))
        return WeightInfo(shape, DTYPES[dtype])

    def order_of(self, name: str) -> str | None:
        """The name of a tensor, i64 [K]: which inputs the columns of a weight are, group by group. None: they are the model's."""
        return self._int4.weights[name].order if name in self._int4.weights else None

    def files_of(self, name: str) -> list[pathlib.Path]:
        """The files that hold the tensor: several only if it is published in parts."""
        if name in self._int4.orders:
            name = name.removesuffix(".order") + ".weight"
        if name in self._int4.weights:
            return sorted({self._place(part) for part in self._int4.weights[name].parts.values()})
        return [self._place(name)]

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

    def _read(self, name: str) -> Tensor:
        return self._shards[self._place(name)].get_tensor(name)

    def _shape(self, name: str) -> tuple[tuple[int, ...], str]:
        """And the stored type, as safetensors calls it."""
        tensor = self._shards[self._place(name)].get_slice(name)
        return tuple(tensor.get_shape()), tensor.get_dtype()

    def _where(self, name: str) -> str:
        return f"{self._places.get(name, self.directory)}: {name}" if name else str(self.directory)

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


def _read_config(directory: pathlib.Path) -> tuple[PreTrainedConfig, Published | None]:
    """The config, and how the linears are stored if they are quantized."""
    path = directory / "config.json"
    if not path.exists():
        raise UserError(str(directory), "no config.json", "a Hugging Face checkpoint")
    data = read_json(path)
    stated = data.get("quantization_config")
    quantization = None if stated is None else published.parse(f"{path}: quantization_config", stated)
    model_type, architectures = data.get("model_type"), data.get("architectures") or []
    if not isinstance(model_type, str | None) or not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise UserError(f"{path}: model_type, architectures", f"{model_type!r}, {architectures!r}", "a name, and a list of names")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if known is None or architectures and known not in architectures:
        raise UserError(f"{path}: architectures", ", ".join(architectures) or f"model_type {model_type!r}",
                        "a causal language model that transformers knows")  # fmt: skip
    config = _parse_config(path, directory)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the model is built, and the reference loaded, with plain linears
    return config, quantization


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
