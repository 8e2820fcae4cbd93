"""A bf16 checkpoint  ->  one with its linears in the compressed-tensors format, which vLLM reads. The LM head stays bf16.

W8A8: int8 weights with a scale an output, activations quantized as they come. W4A16: int4 weights with a scale each 128 inputs.
Scales are of the largest weight: the nearest codes, as weights are random.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP_SIZE = 128
SHARED = {"type": "int", "symmetric": True}
SCHEMES = {
    "W8A8": {
        "format": "int-quantized",
        "weights": SHARED | {"num_bits": 8, "strategy": "channel", "dynamic": False},
        "input_activations": SHARED | {"num_bits": 8, "strategy": "token", "dynamic": True},
    },
    "W4A16": {
        "format": "pack-quantized",
        "weights": SHARED | {"num_bits": 4, "strategy": "group", "group_size": GROUP_SIZE, "dynamic": False},
        "input_activations": None,
    },
}


def write_quantized(source: Path, scheme: str, folder: Path) -> None:
    """folder: the checkpoint of `source` under a scheme of SCHEMES."""
    pack = {"W8A8": pack_int8, "W4A16": pack_int4}[scheme]
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors |= {f"{name.removesuffix('weight')}{part}": packed for part, packed in pack(tensor).items()}
        else:
            tensors[name] = tensor
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": quantization_config(scheme)}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for path in source.glob("tokenizer*.json"):
        shutil.copy(path, folder)


def quantization_config(scheme: str) -> dict:
    stated = SCHEMES[scheme]
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": stated["format"],
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": stated["weights"], "input_activations": stated["input_activations"]}},
    }


def pack_int8(weight: Tensor) -> dict[str, Tensor]:
    """W[N, K]: codes int8 [N, K], scales bf16 [N, 1]."""
    codes, scales = _nearest(weight.float(), 127)
    return {"weight": codes, "weight_scale": scales}


def pack_int4(weight: Tensor) -> dict[str, Tensor]:
    """W[N, K]: eight codes + 8 an int32, the first lowest [N, K/8]; scales bf16 [N, K/128]."""
    n, k = weight.shape
    codes, scales = _nearest(weight.float().view(n, k // GROUP_SIZE, GROUP_SIZE), 7)
    nibbles = (codes.view(n, k // 8, 8) + 8).long()
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    return {"weight_packed": signed, "weight_scale": scales[..., 0], "weight_shape": torch.tensor([n, k])}


def _nearest(values: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Codes within -largest..largest, and a scale for each last dimension."""
    scales = (values.abs().amax(-1, keepdim=True) / largest).bfloat16()
    return (values / scales.float()).round().clamp(-largest, largest).to(torch.int8), scales
