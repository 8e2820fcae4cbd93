import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_harness import HOST_TARGETS, RUNNABLE_TARGETS
from nodes import BF16, F32, compile_together
from paged import Sequences, Shape, new_blocks, new_cache

from slipway.compiler.target import Target
from slipway.plugins.paged_attention.plugin import PLUGIN
from slipway.plugins.rms_norm.plugin import normalize
from slipway.quantization.formats import KV_INT8

SHAPES = {
    "plain": Shape(num_heads=4, num_kv_heads=2, head_dim=32),
    "one_kv_head": Shape(num_heads=7, num_kv_heads=1, head_dim=24, rotary_dim=24),
    "partial_rotary": Shape(num_heads=8, num_kv_heads=2, head_dim=80, rotary_dim=32, source=F32),
    "interleaved_rotary": Shape(num_heads=6, num_kv_heads=2, head_dim=64, rotary_dim=64, interleaved=True),
    "interleaved_partial_rotary": Shape(num_heads=4, num_kv_heads=1, head_dim=48, rotary_dim=20, interleaved=True),
    "every_head_its_own": Shape(num_heads=2, num_kv_heads=2, head_dim=16, norm=True, softcap=4.0),
    "window": Shape(num_heads=8, num_kv_heads=1, head_dim=64, rotary_dim=64, window=40),
    "qwen3": Shape(num_heads=4, num_kv_heads=2, head_dim=128, rotary_dim=128, norm=True),
    "gemma": Shape(num_heads=4, num_kv_heads=4, head_dim=256, rotary_dim=256, norm=True, window=512, softcap=30.0),
    "sinks": Shape(num_heads=8, num_kv_heads=2, head_dim=64, rotary_dim=64, window=128, sinks=True),
    "int8_sinks": Shape(num_heads=8, num_kv_heads=2, head_dim=64, sinks=True, kv=KV_INT8),
    "int8_plain": Shape(num_heads=4, num_kv_heads=2, head_dim=16, kv=KV_INT8),
    "int8_one_kv_head": Shape(num_heads=7, num_kv_heads=1, head_dim=24, rotary_dim=24, kv=KV_INT8),
    "int8_partial_rotary": Shape(num_heads=8, num_kv_heads=2, head_dim=80, rotary_dim=32, source=F32, kv=KV_INT8),
    "int8_qwen3": Shape(num_heads=4, num_kv_heads=2, head_dim=128, rotary_dim=128, norm=True, kv=KV_INT8),
    "int8_window": Shape(num_heads=8, num_kv_heads=1, head_dim=64, window=40, kv=KV_INT8),
    "int8_gemma": Shape(num_heads=4, num_kv_heads=4, head_dim=256, rotary_dim=256, norm=True, window=512, softcap=30.0, kv=KV_INT8),
}
WANTED = ["qwen3", "int8_plain"]  # also for a step whose output is read at logit rows alone
LENGTHS = [1, 31, 32, 33, 511, 513, 700]
every_target = pytest.mark.parametrize("target", RUNNABLE_TARGETS, ids=str)


@functools.cache
def kernels(target):
    """The kernels of SHAPES, and one library of them all."""
    found = {name: Sequences(shape, [1]).step([(0, 0, 1)]).lower(target) for name, shape in SHAPES.items()}
    found |= {f"{name}, only wanted": Sequences(SHAPES[name], [1]).step([(0, 0, 1)], [0]).lower(target) for name in WANTED}
    return found, compile_together(found.values(), target)


@pytest.fixture(scope="module", autouse=True)
def compiled_in_parallel():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kernels, RUNNABLE_TARGETS[::-1]))  # the longest first


def runner(target, name):
    """The kernel of SHAPES[name], and step.run on it."""
    found, library = kernels(target)

    def run(step, blocks, threads=2):
        return step.run(found[name], library, blocks, threads).out

    return found[name], run


def all_of(sequences):
    return [(s, 0, n) for s, n in enumerate(sequences.lengths)]


@every_target
@pytest.mark.parametrize("name", SHAPES)
def test_equals_meaning_from_prefill_to_decode(target, name):
    sequences = Sequences(SHAPES[name], LENGTHS)
    kernel, run = runner(target, name)
    blocks, cache = new_blocks(sequences, kernel), new_cache(sequences)
    steps = [
        [(s, 0, max(n - 20, 0)) for s, n in enumerate(LENGTHS)],
        [(s, max(n - 20, 0), max(n - 1, 0)) for s, n in enumerate(LENGTHS) if s != 2],
        [(2, 12, 31)],
        [(s, n - 1, n) for s, n in reversed(list(enumerate(LENGTHS)))],
    ]
    for threads, parts in enumerate(steps):
        step = sequences.step(parts)
        got, want = run(step, blocks, max(threads, 1)), step.meaning(cache)
        torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-2)


@every_target
@pytest.mark.parametrize("name", ["plain", "window", "qwen3", "gemma", "int8_plain", "int8_qwen3", "int8_gemma"])
def test_bits_of_a_row_depend_on_nothing_but_the_row(target, name):
    """Alone or in a batch, prefilled or decoded, whole or in parts, with any number of threads."""
    sequences = Sequences(SHAPES[name], [1100, 3, 47, 530])
    kernel, run = runner(target, name)
    blocks = new_blocks(sequences, kernel)
    whole = run(sequences.step(all_of(sequences)), blocks)[:1100]
    again = new_blocks(sequences, kernel)
    schedule = [
        [(0, 0, 37), (1, 0, 3)],
        [(3, 0, 500), (0, 37, 600), (2, 0, 40)],
        [(0, 600, 1079)],
        *([(0, i, i + 1), (3, 500 + i - 1079, 501 + i - 1079)] for i in range(1079, 1085)),
        [(2, 40, 45), (0, 1085, 1099)],
        [(0, 1099, 1100)],
    ]
    for threads, parts in enumerate(schedule):
        out = run(sequences.step(parts), again, 1 + threads % 3)
        row = 0
        for s, begin, end in parts:
            if s == 0:
                assert torch.equal(out[row : row + end - begin], whole[begin:end]), (begin, end)
            row += end - begin


@every_target
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_long_sequence_is_the_same_on_any_number_of_threads(target, threads):
    sequences = Sequences(SHAPES["qwen3"], [5000])
    kernel, run = runner(target, "qwen3")
    blocks = new_blocks(sequences, kernel)
    run(sequences.step([(0, 0, 4990)]), blocks)
    decoded = [run(sequences.step([(0, 4990, 4990 + n)]), blocks, t)[:1] for n, t in ((1, threads), (10, 1))]
    assert torch.equal(*decoded)


@every_target
@pytest.mark.parametrize("name", ["one_kv_head", "partial_rotary", "qwen3", "int8_one_kv_head", "int8_partial_rotary", "int8_qwen3"])
def test_what_a_block_held_before_does_not_matter(target, name):
    sequences = Sequences(SHAPES[name], [1, 20, 33, 70])
    kernel, run = runner(target, name)
    outs = []
    for fill in (0x00, 0xFF):
        blocks = new_blocks(sequences, kernel, fill)
        steps = [[(1, 0, 16), (2, 0, 32), (3, 0, 65)], [(0, 0, 1), (1, 16, 20), (2, 32, 33), (3, 65, 70)]]
        outs += [torch.cat([run(sequences.step(parts), blocks) for parts in steps])]
    assert torch.equal(*outs) and not outs[0].isnan().any()


@every_target
@pytest.mark.parametrize("name, value", [("plain", torch.nan), ("int8_plain", torch.nan), ("int8_plain", -torch.inf)])
def test_one_sequence_of_nans_stays_alone(target, name, value):
    sequences, (kernel, run) = Sequences(SHAPES[name], [40, 5, 600]), runner(target, name)
    want = run(sequences.step(all_of(sequences)), new_blocks(sequences, kernel))
    sequences.qkv[1].fill_(value)
    got = run(sequences.step(all_of(sequences)), new_blocks(sequences, kernel))
    assert torch.equal(got[:40], want[:40]) and torch.equal(got[45:], want[45:]) and got[40:45].isnan().all()


@every_target
@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize(
    "logit_rows, unread",
    [([], [(0, 363)]), ([362], [(0, 362)]), ([0, 1, 29, 329, 357, 362], [(30, 329), (330, 357), (358, 362)]), ([340, 357], [(0, 340), (358, 363)])],
    ids=str,
)
def test_what_is_not_read_is_not_computed_but_cached(target, name, logit_rows, unread):
    """From a sequence's first wanted row on, all are."""
    sequences = Sequences(SHAPES[name], [300, 330, 33, 300])
    kernel, run = runner(target, name)
    before, step = [(1, 0, 302), (3, 0, 295)], sequences.step([(2, 0, 30), (0, 0, 300), (1, 302, 330), (3, 295, 300)], logit_rows)
    all_blocks = new_blocks(sequences, kernel)
    run(sequences.step(before), all_blocks)
    want = run(step, all_blocks)
    for threads in (1, 2, 3):
        blocks = new_blocks(sequences, kernel)
        run(sequences.step(before), blocks)
        got = runner(target, f"{name}, only wanted")[1](step, blocks, threads)
        assert torch.equal(got[logit_rows], want[logit_rows]) and (blocks == all_blocks).all()
        assert all(got[begin:end].isnan().all() for begin, end in unread)


@every_target
def test_an_int8_cache_costs_nothing_but_its_rounding(target):
    """Ten times closer than an 8-bit factor anywhere would be: queries and probabilities keep more, sums are exact."""
    sequences = Sequences(SHAPES["int8_plain"], [700, 40])
    kernel, run = runner(target, "int8_plain")
    blocks, cache = new_blocks(sequences, kernel), new_cache(sequences)
    for parts in ([(0, 0, 699), (1, 0, 39)], [(0, 699, 700), (1, 39, 40)]):
        step = sequences.step(parts)
        torch.testing.assert_close(run(step, blocks), step.meaning(cache), rtol=0, atol=2e-4)


@every_target
def test_small_keys_and_values_keep_their_bits_beside_large_ones(target):
    """Each token has a scale of its own: in one block small ones are as good as alone. The window hides the large ones from the last rows."""
    sequences = Sequences(SHAPES["int8_window"], [300])
    sequences.qkv[0][150:, 512:] *= 2.0**-12
    kernel, run = runner(target, "int8_window")
    step = sequences.step(all_of(sequences))
    got, want = run(step, new_blocks(sequences, kernel)), step.meaning(new_cache(sequences))
    torch.testing.assert_close(got[190:], want[190:], rtol=0, atol=2e-4 * 2.0**-12)
    torch.testing.assert_close(got[:150], want[:150], rtol=0, atol=2e-4)


def test_meaning_is_ordinary_causal_attention():
    sequences = Sequences(Shape(num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=16, norm=True, source=F32), [40])
    got = sequences.step(all_of(sequences)).meaning(new_cache(sequences))
    weights, positions = sequences.weights, torch.arange(40)
    q, k, v = (x.view(40, -1, 16) for x in sequences.qkv[0].split([64, 32, 32], 1))
    cos_sin = torch.ops.slipway.rotary_table(positions, weights["rope"])
    q, k = (normalize(x, w, 1e-6, False).flatten(1) for x, w in ((q, weights["q_norm"]), (k, weights["k_norm"])))
    q, k = (torch.ops.slipway.rotary(x, cos_sin, 16, False).view(40, -1, 16).transpose(0, 1) for x in (q, k))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v.transpose(0, 1), is_causal=True, enable_gqa=True)
    torch.testing.assert_close(got, want.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_of_complex_numbers(interleaved):
    def numbers(x):  # [T, heads, head_dim] -> the complex numbers its first 8 columns stand for
        return torch.complex(x[..., :8:2], x[..., 1:8:2]) if interleaved else torch.complex(x[..., :4], x[..., 4:8])

    x, angles = torch.randn(3, 2, 10), torch.rand(3, 4)
    got = torch.ops.slipway.rotary(x.flatten(1), torch.stack((angles.cos(), angles.sin()), 1), 10, interleaved).view(x.shape)
    torch.testing.assert_close(numbers(got), numbers(x) * torch.polar(torch.ones(3, 1, 4), angles[:, None]))
    assert torch.equal(got[..., 8:], x[..., 8:])


def test_export_keeps_the_op_and_its_cache():
    class Model(torch.nn.Module):
        def forward(self, *args):
            return torch.ops.slipway.paged_attention(*args, 0, 4, 2, 16, 0.25, None, None, None)

    sequences = Sequences(Shape(head_dim=16, source=F32), [3, 2])
    step = sequences.step(all_of(sequences))
    args = tuple(step.arguments(new_cache(sequences), F32)[:14])
    exported = torch.export.export(Model(), args, strict=False)
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [torch.ops.slipway.paged_attention.default]
    cache = new_cache(sequences)
    torch.testing.assert_close(exported.module()(*args[:13], cache), step.meaning(new_cache(sequences)))
    assert cache.count_nonzero() > 0


@pytest.mark.parametrize(
    "shape, reason",
    [
        (Shape(head_dim=12), "head_dim 12: only multiples of 8 from 16 to 256"),
        (Shape(head_dim=264), "head_dim 264: only multiples of 8 from 16 to 256"),
        (Shape(num_heads=3, num_kv_heads=2), "3 heads do not share 2 KV heads evenly"),
        (Shape(head_dim=16, rotary_dim=32), "a rotary table for 32 dimensions and heads of 16"),
    ],
)
def test_declines_with_a_reason(shape, reason):
    assert Sequences(shape, [1]).step([(0, 0, 1)]).declined(HOST_TARGETS[0]) == reason


def test_cost_counts_each_byte_once():
    kernel = Sequences(SHAPES["qwen3"], [1]).step([(0, 0, 1)]).lower(HOST_TARGETS[0], BF16)
    assert kernel.cost.kv_bytes == 2 * 2 * 128 * 2 and kernel.kv_block_bytes == 32 * kernel.cost.kv_bytes
    assert kernel.cost.token_bytes == 2 * 128 * (4 + 2 + 2) + kernel.cost.kv_bytes + 2 * 128 * 4
    assert kernel.cost.kv_flops == 2 * 2 * 4 * 128
    int8 = Sequences(SHAPES["int8_qwen3"], [1]).step([(0, 0, 1)]).lower(HOST_TARGETS[0], BF16)
    assert int8.cost.kv_bytes == 2 * 2 * (128 + 4) and int8.kv_block_bytes == 32 * int8.cost.kv_bytes
    assert PLUGIN.ops == ("slipway::paged_attention",)
