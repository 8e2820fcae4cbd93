"""The CUDA kernels of attention, in emulation: ragged batches, every variant of the op, several orders of threads."""

import dataclasses
import functools

import pytest
import torch
from emulated_gpu import ON_GPU, SEEDS, TARGET, compile_emulated
from nodes import BF16, F32
from paged import Sequences, Shape, new_blocks, new_cache

from slipway.compiler.target import Target
from slipway.quantization.formats import KV_FP8, KV_INT8

pytestmark = pytest.mark.gpu  # with --gpu; without it, in emulation
SHAPES = {
    "plain": Shape(),
    "rotary": Shape(rotary_dim=32, norm=True),
    "partly": Shape(head_dim=64, rotary_dim=48, interleaved=True),
    "window": Shape(rotary_dim=32, window=40),
    "softcap": Shape(head_dim=64, softcap=3.0, source=F32),
    "sinks": Shape(head_dim=64, rotary_dim=64, window=128, sinks=True),
    "fp8_sinks": Shape(norm=True, sinks=True, kv=KV_FP8),
    "odd_heads": Shape(num_heads=6, num_kv_heads=1, head_dim=40),
    "many_heads": Shape(num_heads=32, num_kv_heads=2, head_dim=16),
    "wide": Shape(num_heads=2, num_kv_heads=1, head_dim=128, rotary_dim=128),
    "wide_by_warps": Shape(num_heads=4, num_kv_heads=2, head_dim=128, rotary_dim=128, window=70),
    "partly_filled": Shape(num_heads=4, num_kv_heads=2, head_dim=96, rotary_dim=96),
    "widest": Shape(num_heads=2, num_kv_heads=2, head_dim=256),
    "int8": Shape(rotary_dim=32, norm=True, kv=KV_INT8),
    "fp8": Shape(rotary_dim=32, window=40, kv=KV_FP8),
    "int8_odd": Shape(num_heads=6, num_kv_heads=1, head_dim=40, softcap=3.0, source=F32, kv=KV_INT8),
    "fp8_wide": Shape(num_heads=2, num_kv_heads=1, head_dim=128, rotary_dim=128, kv=KV_FP8),
    "fp8_widest": Shape(num_heads=2, num_kv_heads=2, head_dim=256, kv=KV_FP8),
}
OTHER_TARGETS = {"wide_by_warps": Target("sm80")}  # whose prompts warps multiply by themselves
LENGTHS = [1, 33, 300, 130]


@functools.cache
def lowered(storage=F32):
    targets = {name: TARGET if ON_GPU else OTHER_TARGETS.get(name, TARGET) for name in SHAPES}
    kernels = {name: Sequences(shape, [1]).step([(0, 0, 1)]).lower(targets[name], storage) for name, shape in SHAPES.items()}
    # the rotary table of a kernel's weights has as many positions as its sequences: shapes alone tell kernels apart
    return kernels, compile_emulated(kernels.values())


def check(name, parts_of_steps, seed, captured_sequences=None):
    kernels, library = lowered()
    sequences = Sequences(SHAPES[name], LENGTHS, seed)
    cache, blocks = new_cache(sequences), new_blocks(sequences, kernels[name], fill=0xFF)
    for parts in parts_of_steps:
        step = sequences.step(parts)
        want = step.meaning(cache)
        got = step.run_emulated(kernels[name], library, blocks, seed, captured_sequences)
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHAPES)
def test_prefill_then_decode(name, seed):
    prompts = [(0, 0, 1), (1, 0, 32), (2, 0, 290), (3, 0, 129)]
    check(name, [prompts, [(2, 290, 291), (1, 32, 33), (3, 129, 130)], [(2, 291, 292)]], seed)


@pytest.mark.parametrize("name", ["rotary", "window", "many_heads"])
def test_chunks_beside_decodes_and_drafts(name):
    steps = [
        [(1, 0, 20), (2, 0, 100)],
        [(1, 20, 21), (2, 100, 163), (3, 0, 5)],
        [(3, 5, 9), (2, 163, 164), (1, 21, 33)],
        [(2, 164, 300), (0, 0, 1), (3, 9, 10)],
    ]
    check(name, steps, 1)


@pytest.mark.parametrize("captured_sequences", [1, 2, 8, 128, 512])
@pytest.mark.parametrize("name", ["wide", "fp8_sinks"])
def test_any_number_of_splits_gives_the_same(name, captured_sequences):
    check(name, [[(2, 0, 299)], [(2, 299, 300)]], 2, captured_sequences)


@pytest.mark.parametrize("name", ["wide", "wide_by_warps"])
def test_what_blocks_held_before_does_not_matter(name):
    """Other sequences' tokens, and NaN: in blocks that are filled again, token by token and by prompts."""
    kernels, library = lowered()
    outs = []
    for fill in (0x00, 0xFF):
        sequences = Sequences(SHAPES[name], [75, 40], 5)
        blocks = new_blocks(sequences, kernels[name], fill)
        steps = [sequences.step(parts) for parts in ([(0, 0, 50), (1, 0, 33)], [(0, 50, 51)], [(0, 51, 75), (1, 33, 34)], [(1, 34, 40)])]
        outs.append(torch.cat([step.run_emulated(kernels[name], library, blocks, 5) for step in steps]))
    assert torch.equal(*outs) and outs[0].isfinite().all()


def test_a_prompt_longer_than_its_stages():
    """Each stage's place is taken again and again."""
    kernels, library = lowered()
    sequences = Sequences(SHAPES["wide"], [700], 6)
    cache, blocks = new_cache(sequences), new_blocks(sequences, kernels["wide"], fill=0xFF)
    for parts in ([(0, 0, 500)], [(0, 500, 697)]):
        step = sequences.step(parts)
        torch.testing.assert_close(step.run_emulated(kernels["wide"], library, blocks, 6), step.meaning(cache), rtol=2e-2, atol=2e-2)


def test_many_sequences_of_which_few_prefill():
    """More than a warp looks at once, prompts first, last and in the middle."""
    kernels, library = lowered()
    lengths = [90, *[3] * 40, 70, *[2] * 30, 33]
    sequences = Sequences(SHAPES["rotary"], lengths, 4)
    cache, blocks = new_cache(sequences), new_blocks(sequences, kernels["rotary"], fill=0xFF)
    step = sequences.step([(i, 0, n) for i, n in enumerate(lengths)])
    want = step.meaning(cache)
    torch.testing.assert_close(step.run_emulated(kernels["rotary"], library, blocks, 4), want, rtol=2e-2, atol=2e-2)


def test_declines():
    step = Sequences(Shape(num_heads=34, num_kv_heads=2, head_dim=16), [1]).step([(0, 0, 1)])
    assert step.declined(TARGET) == "17 query heads share a KV head: at most 16"
    fp8 = Sequences(Shape(kv=KV_FP8), [1]).step([(0, 0, 1)])
    assert fp8.declined(TARGET) is None and fp8.declined(Target("cpu", "amx")) == "no kernel for fp8 keys and values on cpu-amx"


def test_output_in_bf16():
    shape = dataclasses.replace(SHAPES["rotary"])
    sequences = Sequences(shape, [40])
    step = sequences.step([(0, 0, 40)])
    kernel = step.lower(TARGET, BF16)
    got = step.run_emulated(kernel, compile_emulated([kernel]), new_blocks(sequences, kernel), 1)
    torch.testing.assert_close(got.float(), step.meaning(new_cache(sequences)), rtol=3e-2, atol=3e-2)
