"""Makes a Hugging Face model call slipway:: ops while it is traced: attention, norms and rotary embedding, one node each.

Nothing is trusted by its name alone: a norm or a rotation is replaced only if, on random numbers, it computes what our op means.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from slipway.compiler.errors import UserError

ATTENTION = "slipway"  # the name under which transformers finds our attention
ROTATE = "apply_rotary_pos_emb"
# what models pass on to attention that does not change what it computes
HARMLESS = ("dropout", "position_ids", "use_cache", "output_attentions", "output_router_logits")
slipway = torch.ops.slipway


@dataclass
class Batch:
    """The placeholders attention reads, while the model is traced."""

    positions: Tensor
    cu_seqlens: Tensor
    kv_lens: Tensor
    block_table: Tensor
    kv_cache: Tensor


@dataclass
class Hooks:
    """tables: the rotary tables, by the names they have in the graph. paths: of the model's modules, for messages."""

    tables: dict[str, Tensor] = field(default_factory=dict)
    paths: dict[nn.Module, str] = field(default_factory=dict)
    batch: Batch | None = None

    def register(self) -> None:
        AttentionInterface.register(ATTENTION, self.attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, _no_mask)

    @contextlib.contextmanager
    def installed(self, model: nn.Module, num_positions: int) -> Iterator[None]:
        """The model's modules call our ops inside this context."""
        self.paths = {module: path for path, module in model.named_modules()}
        with contextlib.ExitStack() as undo:
            norms: dict[tuple, Norm | None] = {}
            for path, module in model.named_modules():
                if type(module).__name__.endswith("Norm"):
                    self._install_norm(module, norms, undo)
                elif type(module).__name__.endswith("RotaryEmbedding"):
                    self._install_rotary(path, module, num_positions, undo)
            for source in {sys.modules[type(m).__module__] for m in model.modules()}:
                if original := getattr(source, ROTATE, None):
                    undo.callback(setattr, source, ROTATE, original)
                    setattr(source, ROTATE, functools.partial(_rotate, original, rotations(original)))
            yield

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        is_causal: bool | None = None,
        **others: object,
    ) -> tuple[Tensor, None]:
        """What transformers calls as attention: query, key, value [1, heads, T, head_dim] -> [1, T, heads, head_dim]."""
        heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[3]
        batch, cached = self.batch, self.batch.kv_cache.shape
        unknown = [name for name, value in others.items() if value is not None and name not in HARMLESS]
        if unknown or is_causal is False:
            found = f"attention with {', '.join(unknown) or 'no order of tokens'}"
            raise UserError(self.paths[module], found, "causal attention alone")
        if not kv_heads == value.shape[1] == cached[3] or not head_dim == value.shape[3] == cached[5]:
            found = f"keys of {kv_heads} x {head_dim}, values of {value.shape[1]} x {value.shape[3]}"
            raise UserError(self.paths[module], found, f"{cached[3]} x {cached[5]}, as config.json says")
        packed = slipway.paged_attention(
            *(_tokens_first(x) for x in (query, key, value)),
            None, None, 0.0, False, None, False,  # norms and rotation come as nodes of their own; passes fuse them
            batch.positions, batch.cu_seqlens, batch.kv_lens, batch.block_table, batch.kv_cache,
            module.layer_idx, heads, kv_heads, head_dim,
            float(scaling if scaling is not None else head_dim**-0.5), sliding_window, softcap, s_aux,
        )  # fmt: skip
        return packed.view(1, -1, heads, head_dim), None

    def _install_norm(self, module: nn.Module, known: dict[tuple, Norm | None], undo: contextlib.ExitStack) -> None:
        weight = getattr(module, "weight", None)
        key = (type(module), None if weight is None else weight.shape)
        if key not in known:
            known[key] = recognize_norm(module)
        if known[key]:
            module.forward = functools.partial(_norm, known[key], module)
            undo.callback(module.__dict__.pop, "forward")

    def _install_rotary(self, path: str, module: nn.Module, num_positions: int, undo: contextlib.ExitStack) -> None:
        for variant in [(t,) for t in getattr(module, "layer_types", [])] or [()]:
            found, name = rotary_table(module, num_positions, variant), "_".join(("table", *variant))
            if found is None:
                return
            table, expand = found
            self.tables[f"{path}.{name}"] = table
            module.register_buffer(name, torch.empty_like(table, device="meta"), persistent=False)
            undo.callback(module._buffers.pop, name)

        def forward(x: Tensor, position_ids: Tensor, *variant: str) -> tuple[Tensor, Tensor]:
            cos_sin = slipway.rotary_table(self.batch.positions, getattr(module, "_".join(("table", *variant))))
            cos, sin = (expand(part)[None] for part in cos_sin.unbind(1))
            cos.angles = Angles(cos_sin, expand)
            return cos, sin

        module.forward = forward
        undo.callback(module.__dict__.pop, "forward")


@dataclass(frozen=True)
class Norm:
    eps: float
    plus_one: bool


def by_halves(angles: Tensor) -> Tensor:
    """[..., rotary_dim/2] -> [..., rotary_dim]: an angle for column i and for column rotary_dim/2 + i."""
    return torch.cat((angles, angles), -1)


def by_pairs(angles: Tensor) -> Tensor:
    """[..., rotary_dim/2] -> [..., rotary_dim]: an angle for column 2i and for column 2i + 1."""
    return angles.repeat_interleave(2, -1)


Expansion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Angles:
    """What a cosine of the traced model was made from. cos_sin: rows of a table, [T, 2, rotary_dim/2]."""

    cos_sin: Tensor
    expand: Expansion


def _no_mask(*args: object, config: PreTrainedConfig, local_size: int | None = None, use_vmap: bool = False,
             **others: object) -> None:  # fmt: skip
    """What transformers calls to make a mask: attention knows causality and windows by itself, and no other masks."""
    if use_vmap or local_size not in (None, getattr(config, "sliding_window", None)):
        raise UserError(type(config).__name__, "attention with a mask of the model's own", "causal, or of a sliding window")


def recognize_norm(module: nn.Module) -> Norm | None:
    """How slipway::rms_norm computes what the module does, or None if it does something else."""
    names = [name for name, _ in module.named_parameters()]
    if names not in ([], ["weight"]) or list(module.children()):
        return None
    weight = torch.rand(module.weight.shape) + 0.5 if names else None
    x = torch.randn(1, 3, len(weight) if names else 32) * 1e-3  # small, so that eps shows
    real = copy.copy(module)
    real._parameters = {"weight": weight} if names else {}
    try:
        found = real(x)
    except (RuntimeError, TypeError):
        return None
    for eps in {v for v in vars(module).values() if isinstance(v, float)}:
        for plus_one in (False, True):
            if torch.allclose(slipway.rms_norm(x, weight, eps, plus_one), found, rtol=1e-5, atol=1e-7):
                return Norm(eps, plus_one)
    return None


def rotary_table(module: nn.Module, num_positions: int, variant: tuple[str, ...] = ()) -> tuple[Tensor, Expansion] | None:
    """cos and sin of every position, [num_positions, 2, rotary_dim/2], as the model's own module computes and expands them.

    A variant whose frequencies follow the sequence's length is asked position by position: the token at p was rotated
    when the sequence was p + 1 long. None for a module that expands them in a way of its own.
    """
    with torch.device("cpu"):
        real = type(module)(module.config)
        rope_type = real.rope_type[variant[0]] if variant else real.rope_type
        follows_length = "dynamic" in rope_type or rope_type == "longrope"
        fixed = min(num_positions, module.original_max_seq_len if follows_length else num_positions)
        positions = torch.arange(num_positions)[None]
        pieces = [positions[:, :fixed], *positions[:, fixed:].split(1, 1)]
        parts = [real(torch.zeros(1), piece, *variant) for piece in pieces if piece.numel()]
    cos, sin = (torch.cat(part, 1)[0] for part in zip(*parts))
    for expand, columns in ((by_halves, slice(cos.shape[-1] // 2)), (by_pairs, slice(0, None, 2))):
        if all(torch.equal(expand(part[:, columns]), part) for part in (cos, sin)):
            return torch.stack((cos[:, columns], sin[:, columns]), 1), expand
    return None


def rotations(rotate: Callable) -> dict[Expansion, bool]:
    """How slipway::rotary computes what a model's apply_rotary_pos_emb does with angles expanded one way or the other.

    An expansion -> whether the rotation is interleaved; none that the function does not take, or does something else with.
    """
    return {
        expand: interleaved
        for expand in (by_halves, by_pairs)
        for interleaved in (False, True)
        if _rotates(rotate, expand, interleaved, head_dim=8) and _rotates(rotate, expand, interleaved, head_dim=12) is not False
    }


def _rotates(rotate: Callable, expand: Expansion, interleaved: bool, head_dim: int) -> bool | None:
    """Whether the first 8 columns of heads are rotated so and the rest passes; None if the function refuses such heads."""
    q, k, angles = torch.randn(1, 2, 3, head_dim), torch.randn(1, 1, 3, head_dim), torch.randn(3, 4)
    cos_sin = torch.stack((angles.cos(), angles.sin()), 1)
    try:
        found = rotate(q, k, *(expand(part)[None] for part in cos_sin.unbind(1)))
    except (RuntimeError, TypeError, ValueError):
        return None
    wanted = (_heads_first(slipway.rotary(_tokens_first(x), cos_sin, head_dim, interleaved), x) for x in (q, k))
    return all(f.shape == w.shape and torch.allclose(f, w, atol=1e-6) for f, w in zip(found, wanted))


def _rotate(original: Callable, known: dict[Expansion, bool], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: object, **kwargs: object):
    """apply_rotary_pos_emb of the traced model; what is not known, or not straight from our table, goes to the original."""
    angles = getattr(cos, "angles", None)
    if angles is None or angles.expand not in known or args or kwargs:
        return original(q, k, cos, sin, *args, **kwargs)
    interleaved = known[angles.expand]
    return tuple(_heads_first(slipway.rotary(_tokens_first(x), angles.cos_sin, x.shape[3], interleaved), x) for x in (q, k))


def _norm(norm: Norm, module: nn.Module, x: Tensor) -> Tensor:
    weight = getattr(module, "weight", None)
    if x.dim() == 3:
        return slipway.rms_norm(x.flatten(0, 1), weight, norm.eps, norm.plus_one).view(x.shape)
    if x.dim() != 4 or weight is None:
        return type(module).forward(module, x)
    if isinstance(x.shape[1], torch.SymInt):  # [1, T, heads, head_dim]
        return slipway.head_rms_norm(x.flatten(2)[0], weight, norm.eps, norm.plus_one).view(x.shape)
    return _heads_first(slipway.head_rms_norm(_tokens_first(x), weight, norm.eps, norm.plus_one), x)


def _tokens_first(x: Tensor) -> Tensor:
    """[1, heads, T, head_dim] -> [T, heads*head_dim]."""
    return x[0].transpose(0, 1).flatten(1)


def _heads_first(packed: Tensor, like: Tensor) -> Tensor:
    """The inverse of _tokens_first."""
    return packed.view(-1, like.shape[1], like.shape[3]).transpose(0, 1)[None]
