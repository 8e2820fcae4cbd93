"""Linears as AutoAWQ and GPTQ publish them -> codes, zeros and steps in our order.

A word of 32 bits has eight codes of four bits. AWQ packs neighbouring outputs, even ones first: qweight i32 [K, N/8]. GPTQ packs neighbouring
inputs: qweight i32 [K/8, N]. Both: qzeros i32 [groups, N/8], scales [groups, N]; GPTQ of version 1 stores zeros less one. GPTQ's g_idx i32 [K]
says each input's group: where it quantized in the order of activations, groups are not neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slipway.compiler.errors import UserError
from slipway.quantization.formats import INT4_GROUPS, WeightFormat
from slipway.quantization.stored import StoredInt4

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble that has output 0, 1, ..., of eight
IN_ORDER = tuple(range(8))
CODES = 8  # a word
PARTS = ("qweight", "qzeros", "scales", "g_idx")
METHODS = ("awq", "gptq")
WIDEST_GROUP = max(INT4_GROUPS)


@dataclass(frozen=True)
class Published:
    """group_size: None: all inputs of an output are one group. zeros_less_one: as GPTQ's version 1 stores them."""

    method: str
    group_size: int | None
    zero_point: bool
    zeros_less_one: bool = False

    @property
    def is_awq(self) -> bool:
        return self.method == "awq"

    def format(self, inputs: int) -> WeightFormat:
        """Of a linear of K inputs. A group of all inputs counts as one of whole groups of ours."""
        return WeightFormat("int4", 4, self.group_size or -(-inputs // WIDEST_GROUP) * WIDEST_GROUP, self.zero_point)

    def shape(self, where: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """[N, K] of a linear whose parts have these shapes. Raises UserError for parts that do not fit together."""
        for part in PARTS[:3]:
            if part not in shapes:
                raise UserError(f"{where}.{part}", "no such tensor", f"{', '.join(PARTS[:3])} of a linear that {self.method} stored")
            if len(shapes[part]) != 2 or 0 in shapes[part]:
                raise UserError(f"{where}.{part}", f"shape {list(shapes[part])}", "two dimensions, none of them 0")
        outputs = shapes["scales"][1]
        inputs = shapes["qweight"][0] * (1 if self.is_awq else CODES)
        groups = -(-inputs // (self.group_size or inputs))
        wanted = {
            "qweight": (inputs, outputs // CODES) if self.is_awq else (inputs // CODES, outputs),
            "qzeros": (groups, outputs // CODES),
            "scales": (groups, outputs // CODES * CODES),
            "g_idx": (inputs,),
        }
        for part, shape in shapes.items():
            if tuple(shape) != wanted[part]:
                raise UserError(f"{where}.{part}", f"shape {list(shape)}", f"{list(wanted[part])} of {self.method}, 4 bits, " + (f"groups of {self.group_size}" if self.group_size else "a group an output"))
        return outputs, inputs

    def order(self, where: str, g_idx: Tensor) -> Tensor | None:
        """i64 [K]: the inputs, group by group, None if they are in order. Raises UserError for groups of different sizes."""
        inputs = len(g_idx)
        order = torch.argsort(g_idx, stable=True)
        if not torch.equal(g_idx[order].long(), torch.arange(inputs) // (self.group_size or inputs)):
            raise UserError(f"{where}.g_idx", "groups of different sizes, or that do not exist", f"{self.group_size or inputs} inputs in each group")
        return None if torch.equal(order, torch.arange(inputs)) else order

    def unpack(self, parts: Mapping[str, Tensor], order: Tensor | None) -> StoredInt4:
        """W[N, K], its inputs in that order."""
        if self.is_awq:
            codes = _nibbles(parts["qweight"], AWQ_ORDER).T
            zeros = _nibbles(parts["qzeros"], AWQ_ORDER).T
        else:
            codes = _nibbles(parts["qweight"].T, IN_ORDER)
            zeros = _nibbles(parts["qzeros"], IN_ORDER).T
        if self.zeros_less_one:
            zeros = zeros + 1 & 15
        codes = (codes if order is None else codes[:, order]).contiguous()
        return StoredInt4(codes, zeros.contiguous(), parts["scales"].T.float().contiguous(), self.format(codes.shape[1]).group_size)


def parse(where: str, config: Any) -> Published:
    """A checkpoint's quantization_config. Raises UserError for one that this version does not read."""
    config = config if isinstance(config, dict) else {"quant_method": repr(config)}
    method = config.get("quant_method", "an unnamed method")
    if method not in METHODS:
        raise UserError(where, f"already quantized ({method})", "bf16, fp16 or fp32 weights, or int4 by awq or gptq",
                        "this version quantizes by itself: take the checkpoint this one was made from")  # fmt: skip

    def read(key: str, default: Any, *known: Any) -> Any:
        value = config.get(key, default)
        if value not in known or type(value) is not type(known[0]):
            raise UserError(f"{where}.{key}", repr(value), " or ".join(map(str, known)) + f" of {method} in this version")
        return value

    read("bits" if "bits" in config or method == "gptq" else "w_bit", 4, 4)
    group_size = read("group_size" if "group_size" in config or method == "gptq" else "q_group_size", 128, *INT4_GROUPS, -1)
    groups = None if group_size == -1 else group_size
    read("pack_dtype", "int32", "int32")
    if method == "awq":
        config = config | {"version": str(config.get("version", "gemm")).lower()}
        for key in ("version", "format", "checkpoint_format"):
            read(key, "gemm", "gemm")
        read("backend", "autoawq", "autoawq", "auto")
        return Published(method, groups, read("zero_point", True, True))
    read("is_marlin_format", False, False)
    version = read("checkpoint_format", read("format", "gptq", "gptq", "gptq_v2"), "gptq", "gptq_v2")
    if config.get("format", version) != version:
        raise UserError(f"{where}.format", f"{config['format']}, and checkpoint_format {version}", "the same")
    return Published(method, groups, not read("sym", True, True, False), version == "gptq")


def _nibbles(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """i32 [rows, columns] -> u8 [rows, 8 * columns]: of each word the nibbles in that order."""
    eights = words.contiguous().view(torch.uint8).unflatten(1, (-1, CODES // 2))  # a byte has two nibbles, the low one first
    nibbles = torch.stack([eights & 15, eights >> 4], -1).flatten(2)
    return (nibbles if order == IN_ORDER else nibbles[..., list(order)]).flatten(1)
