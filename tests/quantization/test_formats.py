import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.compiler.errors import UserError
from slipway.quantization import floats
from slipway.quantization.formats import (
    BF16, FORMATS, FP8, FP8_BLOCK, INT8, KV_BF16, KV_FP8, KV_INT8, MXFP4, NVFP4, WeightFormat, dequantize, parse, quantize,
    round_trip,
)  # fmt: skip

INTEGER = [f for f in FORMATS if f.integer]


def weights(n, k, seed=0):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_names_and_bits():
    assert [str(f) for f in FORMATS[:4]] == ["bf16", "int8", "int4g32", "int4g32z"]
    assert [f.bits_per_weight for f in FORMATS] == [16, 8, 4.5, 4.75, 4.25, 4.375, 4.125, 4.1875, 8, 8, 4.5, 4.25]
    assert [str(f) for f in FORMATS[-4:]] == ["fp8", "fp8_block", "nvfp4", "mxfp4"]


def test_parse_knows_the_table():
    assert parse("bf16") == BF16 and parse("int8") == INT8
    assert parse("int4", group_size=64, zero_point=True) == WeightFormat("int4", 4, 64, True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("int3",), "weights: unknown format 'int3'; expected one of bf16, int8, int4, fp8, fp8_block, nvfp4, mxfp4"),
        (("int4", 96), "group_size: int4 weights with groups of 96; expected 32, 64 or 128\nhint: group_size: 128"),
        (("int4",), "group_size: int4 weights with groups of None; expected 32, 64 or 128\nhint: group_size: 128"),
        (("int8", 128), "group_size: int8 weights have none\nhint: leave it out"),
        (("bf16", None, True), "zero_point: bf16 weights have none\nhint: leave it out"),
    ],
)
def test_parse_refuses(arguments, message):
    with pytest.raises(UserError) as error:
        parse(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_of_a_gaussian_weight(fmt, dtype):
    weight = weights(70, 300).to(dtype)
    error = (round_trip(weight, fmt) - weight.float()).square().mean().sqrt() / 0.02
    assert error < {8: 0.009, 4: 0.105}[fmt.bits]


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 5), k=st.integers(1, 300), scale=st.floats(1e-3, 100), seed=st.integers(0, 99))
def test_round_trip(fmt, n, k, scale, seed):
    weight = weights(n, k, seed) * scale
    quantized = quantize(weight, fmt)
    assert quantized.codes.shape == weight.shape and int(quantized.codes.max()) < 2**fmt.bits
    assert quantized.scales.shape == (n,) and (quantized.zeros is not None) == fmt.zero_point
    inside = (quantized.codes > (0 if fmt.bits == 4 else 1)) & (quantized.codes < 2**fmt.bits - 1)
    allowed = 0.502 * quantized.scales[:, None].expand(n, k)
    if fmt == INT8:
        assert quantized.multipliers is None
    else:
        assert quantized.multipliers.shape == (n, fmt.groups(k))
        steps = quantized.multipliers.float().abs().repeat_interleave(fmt.group_size, 1)[:, :k] / 128
        allowed = (0.502 * steps + 1) * quantized.scales[:, None]  # a code, and the rungs of it and of its zero
    assert ((dequantize(quantized) - weight).abs() <= allowed + 1e-9)[inside].all()


@pytest.mark.parametrize("fmt", [f for f in INTEGER if f.bits == 4], ids=str)
@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.sampled_from([1, 10, 1000]))
def test_rungs_are_int8(fmt, seed, outlier):
    """However much larger than the others one group is, every weight is a whole number of its output's scale, within int8."""
    weight = weights(3, 300, seed)
    weight[:, 17] *= outlier
    quantized = quantize(weight, fmt)
    rungs = dequantize(quantized) / quantized.scales[:, None]
    assert ((rungs - rungs.round()).abs() < 1e-4).all() and rungs.abs().max() <= 127.001


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_exact_values_stay(fmt):
    """Multiples of one scale, over the whole range of codes."""
    codes = torch.arange(2**fmt.bits).repeat(4, 256)[:, : 4 * 128]
    codes = codes.clamp(min=1) if fmt == INT8 else codes
    weight = (codes - 2 ** (fmt.bits - 1)) * 0.25
    assert torch.allclose(round_trip(weight, fmt), weight, rtol=1e-6)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_zero_rows_stay_zero(fmt):
    weight = weights(3, 40)
    weight[1] = 0
    assert (round_trip(weight, fmt)[1] == 0).all()


@pytest.mark.parametrize("fmt", FORMATS[1:], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_no_format_holds_nan_or_infinity(fmt, bad):
    weight = weights(9000, 40)
    weight[8123, 17] = bad
    with pytest.raises(UserError, match="row 8123 holds NaN, infinity or a value too large"):
        quantize(weight, fmt)


def test_chunks_do_not_show():
    weight = weights(700, 1000)
    for fmt in FORMATS[1:]:
        rows = slice(384, 512) if fmt == FP8_BLOCK else slice(431, 432)
        whole, alone = quantize(weight, fmt), quantize(weight[rows], fmt)
        assert torch.equal(whole.codes[rows], alone.codes) and torch.equal(whole.scales[rows], alone.scales)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def test_e2m1_takes_the_nearest_and_of_two_the_even():
    x = torch.arange(-2048, 2049) / 256
    codes = floats.e2m1_codes(x)
    values = floats.e2m1_values(codes)
    distance = (x.abs().clamp(max=6)[:, None] - E2M1).abs()
    assert torch.equal((values.abs() - x.abs().clamp(max=6)).abs(), distance.amin(1))
    ties = (distance == distance.amin(1, keepdim=True)).sum(1) > 1
    assert ties.sum() == 14 and (codes[ties] % 2 == 0).all()
    assert torch.equal(values.sign()[values != 0], x.sign()[values != 0])


def test_e4m3_is_torchs():
    bits = torch.arange(127, dtype=torch.uint8)  # all that are not NaN
    values = floats.e4m3_values(bits)
    assert torch.equal(floats.e4m3_bits(values), bits) and values[-1] == 448 and values[1] == 2**-9
    assert torch.equal(floats.e4m3_values(floats.e4m3_bits(torch.tensor([1e9, -1e9]))), torch.tensor([448.0, -448.0]))


@pytest.mark.parametrize("fmt, most", [(FP8, 0.028), (FP8_BLOCK, 0.028), (NVFP4, 0.1), (MXFP4, 0.14)], ids=str)
def test_error_of_a_gaussian_weight_in_small_floats(fmt, most):
    weight = weights(70, 300)
    error = (round_trip(weight, fmt) - weight).square().mean().sqrt() / 0.02
    assert error < most


@pytest.mark.parametrize("fmt", [FP8, NVFP4, MXFP4], ids=str)
def test_what_small_floats_hold_they_keep(fmt):
    held = round_trip(weights(9, 96, 3), fmt)
    torch.testing.assert_close(round_trip(held, fmt), held, rtol=1e-6, atol=0)


def test_scales_of_mxfp4_are_powers_of_two_that_leave_no_value_beyond():
    weight = weights(20, 96) * torch.logspace(-6, 4, 20)[:, None]
    quantized = quantize(weight, MXFP4)
    assert (quantized.scales == 1).all() and quantized.multipliers.shape == (20, 3)
    largest = weight.view(20, 3, 32).abs().amax(-1) / floats.decode_mxfp4_scale(quantized.multipliers)
    assert (largest < 8).all() and (largest >= 4).all()  # 6 is the last; to 8 it is clipped, as the specification has it
    with pytest.raises(UserError, match="row 1 holds NaN, infinity or a value too large for mxfp4"):
        quantize(torch.tensor([[1.0], [1e6]]), MXFP4)


def test_fp8_blocks_share_a_multiplier():
    weight = weights(200, 300) * torch.logspace(-3, 3, 200)[:, None]
    quantized = quantize(weight, FP8_BLOCK)
    assert quantized.multipliers.shape == (200, 3) and (quantized.scales == 1).all()
    for rows in (slice(0, 128), slice(128, 200)):
        for group in range(3):
            (multiplier,) = quantized.multipliers[rows, group].unique()
            assert multiplier == weight[rows, 128 * group : 128 * (group + 1)].abs().max() / 448


def test_multipliers_of_fp8_blocks_are_near_enough_to_each_other():
    weight = torch.cat([torch.zeros(3, 128), torch.full((3, 128), 1e-30), torch.ones(3, 128)], 1)
    quantized = quantize(weight, FP8_BLOCK)
    assert torch.equal(quantized.multipliers[0] * 448, torch.tensor([2.0**-40, 2.0**-40, 1.0]))
    assert torch.allclose(dequantize(quantized), weight, atol=2.0**-50)
    assert (round_trip(torch.zeros(2, 5), FP8_BLOCK) == 0).all()


def test_an_fp8_cache_keeps_three_bits_of_each_number():
    x = torch.randn(7, 3, 40) * torch.logspace(-4, 4, 7)[:, None, None]
    held = KV_FP8.round_trip(x)
    assert torch.allclose(held.abs().amax(-1), x.abs().amax(-1), rtol=1e-6)
    error = (held - x).abs() / torch.maximum(x.abs(), x.abs().amax(-1, keepdim=True) / 448 * 2**-6)
    assert error.max() <= 2**-4 + 1e-6 and (KV_FP8.round_trip(torch.zeros(2, 8)) == 0).all()


def test_kv_formats_by_the_bytes_of_a_token():
    assert [f.token_bytes(128) for f in (KV_BF16, KV_INT8)] == [256, 132]
    x = torch.randn(5, 16)
    assert torch.equal(KV_BF16.round_trip(x), x.bfloat16().float())


@settings(deadline=None, max_examples=50)
@given(heads=st.integers(1, 3), head_dim=st.integers(1, 70), exponent=st.integers(-60, 60), seed=st.integers(0, 99))
def test_an_int8_cache_keeps_each_head_to_half_a_step(heads, head_dim, exponent, seed):
    x = torch.randn(4, heads, head_dim, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    x[0] = 0
    held = KV_INT8.round_trip(x)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((held - x).abs() <= 0.5001 * step).all() and (held[0] == 0).all()
    torch.testing.assert_close(KV_INT8.round_trip(held), held)
