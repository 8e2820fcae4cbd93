"""Tells whether an op treats every row of a packed batch alike, by trying it on random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from slipway.compiler.graph_text import EXTENTS

ROWS = 5  # stands for a number of rows when an op is tried
MAX_ELEMENTS = 1 << 24  # of a tensor that is made up for trying


def row_dim(tensor: Tensor) -> int | None:
    """The dimension that counts rows (tokens or wanted logit rows), or None."""
    return next((dim for dim, extent in enumerate(tensor.shape) if extent in (EXTENTS["T"], EXTENTS["R"])), None)


def mixes_rows(target: OpOverload, args: Any, kwargs: Any) -> bool:
    """Whether another order of the rows changes more than the order of the results, or cannot be tried.

    args, kwargs: the call's arguments, with meta tensors.
    """
    order = torch.randperm(ROWS)
    made: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        results = [target(*_real(args, order, made, i), **_real(kwargs, order, made, i)) for i in (0, 1)]
        shape = target(*args, **kwargs)
    except (RuntimeError, IndexError, ValueError):
        return True
    plain, permuted, shapes = ([r] if isinstance(r, Tensor) else list(r) for r in (*results, shape))
    return not all(map(lambda a, b, s: _permutes(a, b, s, order), plain, permuted, shapes))


def _permutes(plain: Tensor, permuted: Tensor, shape: Tensor, order: Tensor) -> bool:
    rows = [dim for dim, extent in enumerate(shape.shape) if extent in (EXTENTS["T"], EXTENTS["R"])]
    if len(rows) != 1 or plain.shape[rows[0]] != ROWS:
        return False
    return torch.allclose(plain.index_select(rows[0], order), permuted, rtol=1e-4, atol=1e-6, equal_nan=True)


def _real(argument: Any, order: Tensor, made: dict[int, tuple[Tensor, Tensor]], which: int) -> Any:
    """The argument with real tensors: which = 0 as made up, 1 with its rows in the other order."""
    if isinstance(argument, Tensor):
        if id(argument) not in made:
            made[id(argument)] = _made_up(argument, order)
        return made[id(argument)][which]
    if isinstance(argument, dict):
        return {name: _real(a, order, made, which) for name, a in argument.items()}
    if isinstance(argument, (list, tuple)):
        return type(argument)(_real(a, order, made, which) for a in argument)
    return _small(argument)


def _made_up(meta: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    shape = [_small(extent) for extent in meta.shape]
    if torch.Size(shape).numel() > MAX_ELEMENTS:
        raise ValueError("too large to try")
    plain = torch.randn(shape).to(meta.dtype) if meta.is_floating_point() else torch.randint(0, 2, shape).to(meta.dtype)
    rows = row_dim(meta)
    return plain, plain if rows is None else plain.index_select(rows, order)


def _small(value: Any) -> Any:
    """A row count becomes ROWS, everything else stays."""
    return ROWS if type(value) is int and value in (EXTENTS["T"], EXTENTS["R"]) else value
