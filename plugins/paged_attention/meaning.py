"""What slipway::paged_attention and the rotary ops mean, in PyTorch.

kv_cache: [layers, blocks, 2, kv_heads, block_size, head_dim].
"""

from __future__ import annotations

import torch
from torch import Tensor

from slipway.plugins.rms_norm.plugin import normalize


@torch.library.custom_op("slipway::rotary_table", mutates_args=())
def rotary_table(positions: Tensor, table: Tensor) -> Tensor:
    """positions[T], table[P, 2, rotary_dim/2] -> cos and sin of each token, [T, 2, rotary_dim/2]."""
    return table[positions.long()]


@torch.library.custom_op("slipway::rotary", mutates_args=())
def rotary(x: Tensor, cos_sin: Tensor, head_dim: int, interleaved: bool) -> Tensor:
    """x[T, heads*head_dim] -> same shape: the first rotary_dim columns of each head rotate, the rest pass."""
    return rotate(x.reshape(x.shape[0], -1, head_dim), cos_sin, interleaved).reshape(x.shape)


def rotate(x: Tensor, cos_sin: Tensor, interleaved: bool) -> Tensor:
    """x[T, heads, head_dim], cos_sin[T, 2, rotary_dim/2].

    Column i turns together with column rotary_dim/2 + i; interleaved: column 2i with column 2i + 1.
    """
    half = cos_sin.shape[-1]
    cos, sin = cos_sin[:, None].unbind(-2)
    turning, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.split(half, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat((torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1), rest), -1)


@torch.library.custom_op("slipway::paged_attention", mutates_args=("kv_cache",))
def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
    norm_plus_one: bool,
    rope: Tensor | None,
    rope_interleaved: bool,
    positions: Tensor,
    cu_seqlens: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    kv_cache: Tensor,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Norm and rotation of q and k, K and V into the cache, then causal attention of a ragged batch over the cache.

    q[T, num_heads*head_dim], k and v[T, num_kv_heads*head_dim]; sequence s owns tokens cu_seqlens[s] to cu_seqlens[s+1],
    and kv_lens[s] cache slots with those. Query head h reads KV head h // (num_heads / num_kv_heads). A token at
    position p sees positions max(0, p - window + 1) to p. softcap: scores become softcap * tanh(score / softcap).
    sinks[num_heads]: a score of each head, of a token whose value is zero.
    """
    rows = q.shape[0]
    q, k, v = (x.float().reshape(rows, -1, head_dim) for x in (q, k, v))
    q = q if q_norm is None else normalize(q, q_norm, norm_eps, norm_plus_one)
    k = k if k_norm is None else normalize(k, k_norm, norm_eps, norm_plus_one)
    if rope is not None:
        q, k = (rotate(x, rope[positions.long()], rope_interleaved) for x in (q, k))
    cache = kv_cache[layer]
    _write(cache, k, v, positions.long(), cu_seqlens, block_table)
    out = [
        _attend(q[start:end], *_read(cache, block_table[s], int(kv_lens[s])), positions[start:end], scale, window, softcap, sinks)
        for s, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:]))
    ]
    return torch.cat(out).reshape(rows, num_heads * head_dim)


def _write(cache: Tensor, k: Tensor, v: Tensor, positions: Tensor, cu_seqlens: Tensor, block_table: Tensor) -> None:
    block_size = cache.shape[3]
    sequence = torch.repeat_interleave(torch.arange(len(cu_seqlens) - 1), cu_seqlens.diff())
    blocks = block_table[sequence, positions // block_size].long()
    cache[blocks, 0, :, positions % block_size] = k.to(cache.dtype)
    cache[blocks, 1, :, positions % block_size] = v.to(cache.dtype)


def _read(cache: Tensor, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """K and V of a sequence, each [kv_heads, length, head_dim]."""
    block_size = cache.shape[3]
    used = cache[blocks[: -(-length // block_size)].long()].float()
    keys, values = used.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length]
    return keys, values


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, window: int | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """q[n, num_heads, head_dim] -> same shape."""
    rows, num_heads, head_dim = q.shape
    grouped = q.reshape(rows, len(keys), num_heads // len(keys), head_dim)  # [n, kv_heads, group, head_dim]
    scores = torch.einsum("nkgd,ksd->nkgs", grouped, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    distance = positions[:, None] - torch.arange(keys.shape[1])
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        sink = sinks.float().reshape(1, len(keys), -1, 1).expand(rows, -1, -1, -1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return torch.einsum("nkgs,ksd->nkgd", weights, values).reshape(rows, num_heads, head_dim)


@rotary_table.register_fake
def _(positions: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(positions.shape[0], *table.shape[1:])


@rotary.register_fake
def _(x: Tensor, cos_sin: Tensor, head_dim: int, interleaved: bool) -> Tensor:
    return torch.empty_like(x)


@paged_attention.register_fake
def _(q: Tensor, *others: object) -> Tensor:
    return q.new_empty(q.shape)
