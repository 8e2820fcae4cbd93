"""The linears of a checkpoint that AutoAWQ or GPTQ has stored: which tensors are parts of which, and the order of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slipway.compiler.errors import UserError
from slipway.compiler.graph import WeightInfo
from slipway.quantization.published import PARTS, Published
from slipway.quantization.stored import MIDDLE

FIRST = ".qweight"
WORDS, SCALES = ("I32",), ("F16", "BF16", "F32")  # types of the tensors


@dataclass(frozen=True)
class Int4Linear:
    """parts: tensors by what they are. order: the name of the tensor that says which inputs the columns are, None: the model's."""

    parts: dict[str, str]
    info: WeightInfo
    order: str | None


@dataclass
class Int4Linears:
    """weights: by the names that the model's weights have. orders: i64 [K] each, those that are the same once. published: None where there are none."""

    published: Published | None = None
    weights: dict[str, Int4Linear] = field(default_factory=dict)
    orders: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def find(cls, published: Published, names: Iterable[str], where: Callable[[str], str], shape: Callable[[str], tuple[tuple[int, ...], str]],
             read: Callable[[str], Tensor]) -> Int4Linears:
        """All there are among the names. where, shape, read: of a tensor its place in words, its shape and stored type, its values."""
        names, found = set(names), cls(published)
        for name in sorted(name for name in names if name.endswith(FIRST)):
            module = name.removesuffix(FIRST)
            parts = {part: f"{module}.{part}" for part in PARTS if f"{module}.{part}" in names}
            shapes = {part: shape(stored) for part, stored in parts.items()}
            for part, (_, dtype) in shapes.items():
                if dtype not in (known := SCALES if part == "scales" else WORDS):
                    raise UserError(where(parts[part]), f"type {dtype}", " or ".join(known))
            outputs, inputs = published.shape(where(module), {part: extents for part, (extents, _) in shapes.items()})
            order = published.order(where(module), read(parts["g_idx"])) if "g_idx" in parts else None
            info = WeightInfo((outputs, inputs), torch.float16, published.format(inputs))
            found.weights[f"{module}.weight"] = Int4Linear(parts, info, None if order is None else found._named(f"{module}.order", order))
        if not found.weights:
            raise UserError(where(""), f"no tensor whose name ends in {FIRST}", f"linears that {published.method} stored", "download the checkpoint again")
        return found

    def _named(self, name: str, order: Tensor) -> str:
        """The name of the same order if there is one: who reads the same activations shares it."""
        same = next((known for known, tensor in self.orders.items() if torch.equal(tensor, order)), name)
        self.orders.setdefault(same, order)
        return same

    def parts(self) -> set[str]:
        """Names of the tensors that are no weights by themselves."""
        return {stored for linear in self.weights.values() for stored in linear.parts.values()}

    def read(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """A weight, its inputs in the order of its groups."""
        linear = self.weights[name]
        weight = self.published.unpack({part: read(stored) for part, stored in linear.parts.items()}, self.orders[linear.order] if linear.order else None)
        if not self.published.zero_point and (weight.zeros != MIDDLE).any():
            raise UserError(linear.parts["qzeros"], "zeros that are not the middle of the codes", f"{MIDDLE}, quantization_config saying that zeros are symmetric",
                            "is its checkpoint_format, or its sym, another?")  # fmt: skip
        return weight
