"""Greedy completions of an engine beside those of transformers in float32: equal, up to ties."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from as_multiplied import AS_MULTIPLIED
from slipway.quantization import formats
from slipway.recipes import catalog
from slipway.recipes.schema import Precision
from slipway.runtime.engine import Engine, SamplingParams
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TIE = 0.25  # of a logit: closer candidates may change places under bfloat16 rounding (transformers' own bfloat16: up to 0.4 here)


def checkpoint_of(model: str) -> pathlib.Path:
    return catalog.find(f"{model}/cpu-bf16").parent / "checkpoint"


def prompts_of(model: str, count: int, tokens: int) -> torch.Tensor:
    """Token ids [count, tokens] from all over the held-out text."""
    text = checkpoint_of(model).parent.parent.joinpath("heldout.txt").read_text()
    ids = Tokenizer.from_file(str(checkpoint_of(model) / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return torch.tensor([ids[start : start + tokens] for start in starts])


@torch.no_grad()
def reference(model: str, prompts: torch.Tensor, new_tokens: int, as_held: Callable[[str, torch.nn.Linear], None] | None = None):
    """Greedy tokens of transformers in float32, and the logits each came from. as_held: makes a linear, by its path, multiply what an engine's does."""
    network = AutoModelForCausalLM.from_pretrained(checkpoint_of(model), dtype=torch.float32)
    for path, module in network.named_modules():
        if as_held and isinstance(module, torch.nn.Linear):
            as_held(path, module)
    out = network.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                           do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True)  # fmt: skip
    return out.sequences[:, prompts.shape[1] :], torch.stack(out.logits, 1)


def as_held(precision: Precision) -> Callable[[str, torch.nn.Linear], None]:
    """What makes a linear of transformers, by its path, multiply weights, and activations of prompts, as an engine of that precision does; int4 as a
    GPU has it.
    """

    def change(path, linear):
        linear.weight = torch.nn.Parameter(formats.round_trip(linear.weight, formats.parse(*precision.of(path)), rungs=False))
        if precision.activations != "bf16" and path != "lm_head":
            multiplied = AS_MULTIPLIED[precision.activations]
            linear.register_forward_pre_hook(lambda _, given: multiplied(given[0].flatten(0, 1)).view_as(given[0]) if given[0].shape[1] > 1 else None)  # of a token alone: bf16

    return change


def few_prompts(model: str) -> torch.Tensor:
    return prompts_of(model, 8, 24)


@functools.cache
def reference_of(model: str, precision: Precision):
    """24 tokens that transformers adds to few_prompts() with linears of that precision."""
    return reference(model, few_prompts(model), 24, as_held(precision))


def check_greedy(engine: Engine, prompts: torch.Tensor, wanted: torch.Tensor, logits: torch.Tensor) -> None:
    """Where the engine's tokens part from those wanted there is a tie, and for most prompts they never do."""
    new_tokens, gaps = wanted.shape[1], {}
    found = engine.generate(prompts.tolist(), SamplingParams(max_tokens=new_tokens, temperature=0, ignore_eos=True))
    for i, completion in enumerate(found):
        tokens = torch.tensor(completion.token_ids)
        assert len(tokens) == new_tokens
        if (differ := (tokens != wanted[i]).nonzero()).numel():
            first = int(differ[0])
            gaps[i] = float(logits[i, first].max() - logits[i, first, tokens[first]])
    print(f"{len(prompts) - len(gaps)} of {len(prompts)} equal; logit gaps where they part: {sorted(gaps.values())}")
    assert all(gap < TIE for gap in gaps.values()), gaps
    assert len(gaps) < len(prompts) / 2
