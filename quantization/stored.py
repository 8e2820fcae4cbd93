"""A weight whose int4 codes are given, as a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

MIDDLE = 8  # the zero of groups that have none of their own


class StoredInt4(Tensor):
    """float32 W[n, k] = (codes[n, k] - zeros[n, g]) * steps[n, g], g = k // group_size.

    codes u8 [N, K], zeros u8 [N, groups], both 0 .. 15; steps f32 [N, groups]. Taking, joining and filling up rows and scaling all keeps codes; every
    other op sees float32.
    """

    codes: Tensor
    zeros: Tensor
    steps: Tensor
    group_size: int

    @staticmethod
    def __new__(cls, codes: Tensor, zeros: Tensor, steps: Tensor, group_size: int) -> StoredInt4:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, zeros: Tensor, steps: Tensor, group_size: int):
        self.codes, self.zeros, self.steps, self.group_size = codes, zeros, steps, group_size

    def decoded(self) -> Tensor:
        """A plain tensor."""
        zeros, steps = (each.repeat_interleave(self.group_size, 1)[:, : self.shape[1]] for each in (self.zeros, self.steps))
        return (self.codes.float() - zeros) * steps

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kept = KEPT.get(func, lambda *args, **kwargs: None)(*args, **kwargs or {})
        if kept is not None:
            return kept
        args, kwargs = tree_map_only(StoredInt4, StoredInt4.decoded, (args, kwargs or {}))
        return func(*args, **kwargs)


def _slice(w: StoredInt4, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> StoredInt4 | None:
    rows = slice(start, end, step)
    return StoredInt4(w.codes[rows], w.zeros[rows], w.steps[rows], w.group_size) if dim == 0 else None


def _cat(weights: list[Tensor], dim: int = 0) -> StoredInt4 | None:
    if dim != 0 or not all(isinstance(w, StoredInt4) and w.group_size == weights[0].group_size for w in weights):
        return None
    return StoredInt4(*(torch.cat(parts) for parts in zip(*((w.codes, w.zeros, w.steps) for w in weights))), weights[0].group_size)


def _pad(w: StoredInt4, widths: list[int], value: float = 0) -> StoredInt4 | None:
    if value != 0 or list(widths[:3]) != [0, 0, 0] or len(widths) != 4:
        return None
    fill = lambda part, value: torch.nn.functional.pad(part, (0, 0, 0, widths[3]), value=value)
    return StoredInt4(fill(w.codes, MIDDLE), fill(w.zeros, MIDDLE), fill(w.steps, 0), w.group_size)


def _scaled(operation: Callable) -> Callable:
    def scaled(w: StoredInt4, factor: Tensor | float) -> StoredInt4 | None:
        if operation is torch.mul and isinstance(factor, StoredInt4):
            w, factor = factor, w
        is_number = isinstance(w, StoredInt4) and (not isinstance(factor, Tensor) or type(factor) is Tensor and factor.ndim == 0)
        return StoredInt4(w.codes, w.zeros, operation(w.steps, factor), w.group_size) if is_number else None

    return scaled


KEPT = {  # ops that have to do with rows alone, or with steps alone
    torch.ops.aten.slice.Tensor: _slice,
    torch.ops.aten.cat.default: _cat,
    torch.ops.aten.constant_pad_nd.default: _pad,
    torch.ops.aten.mul.Tensor: _scaled(torch.mul),
    torch.ops.aten.div.Tensor: _scaled(torch.div),
}
