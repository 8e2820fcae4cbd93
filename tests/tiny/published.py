"""Checkpoints whose linears are stored as AutoAWQ and GPTQ store them, made of plain ones."""

from __future__ import annotations

import json
import pathlib
import shutil
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the output, of eight neighbours, that a word's nibbles hold


@dataclass(frozen=True)
class Layout:
    """group_size: -1: all inputs of an output. act_order: groups are made of inputs in some other order than theirs."""

    method: str
    group_size: int = 128
    zero_point: bool = True
    act_order: bool = False
    version: str = "gptq"

    @property
    def config(self) -> dict:
        stated = {"quant_method": self.method, "bits": 4, "group_size": self.group_size}
        if self.method == "awq":
            return stated | {"version": "gemm", "zero_point": self.zero_point, "modules_to_not_convert": None}
        return stated | {"sym": not self.zero_point, "desc_act": self.act_order, "checkpoint_format": self.version, "lm_head": False}


def publish(plain: pathlib.Path, out: pathlib.Path, layout: Layout, only: str = ".layers.") -> dict[str, Tensor]:
    """Writes the checkpoint; only: in the names of linears that are stored so. The LM head and all that is not a layer's linear stays as it is. -> float32 weights its codes stand for."""
    shutil.copytree(plain, out)
    tensors, held = {}, {}
    random = torch.Generator().manual_seed(0)
    orders: dict[tuple[str, str], Tensor] = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if weight.ndim != 2 or ".layers." not in name or only not in name:
            tensors[name] = weight.half()
            continue
        module, inputs = name.removesuffix(".weight"), weight.shape[1]
        reads = (module.split(".layers.")[1].split(".")[0], "hidden" if module.endswith(("q_proj", "k_proj", "v_proj")) else "mlp" if module.endswith(("gate_proj", "up_proj")) else module)
        order = orders.setdefault(reads, torch.randperm(inputs, generator=random) if layout.act_order else torch.arange(inputs))
        parts, held[name] = pack(weight.float(), layout, order)
        tensors |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": layout.config, "dtype": "float16"}))
    return held


def pack(weight: Tensor, layout: Layout, order: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Rounds W[N, K] to the nearest of each group's 16 steps. -> the parts, and W as they have it."""
    inputs = weight.shape[1]
    size = layout.group_size if layout.group_size > 0 else inputs
    grouped = weight[:, order].unflatten(1, (-1, size))
    if layout.zero_point:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(1, 15)
    else:
        scales = (grouped.abs().amax(-1) / 7).half()
        zeros = torch.full(scales.shape, 8.0)
    steps = scales.float()[..., None]
    codes = (grouped / steps + zeros[..., None]).round().clamp(0, 15)
    held = ((codes - zeros[..., None]) * steps).flatten(1)[:, order.argsort()]
    codes, zeros = codes.flatten(1)[:, order.argsort()].int().T, zeros.int().T
    parts = {"scales": scales.T.contiguous()}
    if layout.method == "awq":
        return parts | {"qweight": _words(codes, AWQ_NIBBLES), "qzeros": _words(zeros, AWQ_NIBBLES)}, held
    g_idx = (torch.arange(inputs) // size)[order.argsort()].int()
    stored = zeros - 1 if layout.version == "gptq" else zeros
    return parts | {"qweight": _words(codes.T, range(8)).T.contiguous(), "qzeros": _words(stored, range(8)), "g_idx": g_idx}, held


def _words(values: Tensor, held: tuple[int, ...] | range) -> Tensor:
    """[rows, 8 * words] -> i32 [rows, words], whose nibbles hold those of each eight."""
    eights = values.unflatten(1, (-1, 8)).long()
    return sum(eights[..., value] << 4 * nibble for nibble, value in enumerate(held)).to(torch.uint32).view(torch.int32).contiguous()
