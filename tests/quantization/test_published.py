"""int4 as AutoAWQ and GPTQ publish it: codes, zeros and steps stay as they are, through every op that packing uses."""

import pathlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import Layout, pack
from safetensors.torch import load_file

from slipway.compiler.errors import UserError
from slipway.quantization.formats import BF16, INT8, WeightFormat, dequantize, parse, quantize, round_trip
from slipway.quantization.published import PARTS, Published
from slipway.quantization.published import parse as parse_config
from slipway.quantization.stored import StoredInt4

FILES = pathlib.Path(__file__).parent / "published"
MADE = {"awq": Published("awq", 32, True), "gptq": Published("gptq", 32, True, True), "gptq-act-order": Published("gptq", 32, True, True)}


def in_model_order(weight, order):
    return weight if order is None else weight[:, order.argsort()]


def unpacked(published, parts):
    order = published.order("linear", parts["g_idx"]) if "g_idx" in parts else None
    return published.unpack(parts, order), order


@pytest.mark.parametrize("name", MADE)
def test_equals_what_the_owning_library_multiplies_with(name):
    """The files are of autoawq and auto-gptq (published/make.py), which multiply with products rounded to float16."""
    file = load_file(FILES / f"{name}.safetensors")
    parts = {part: file[part] for part in PARTS if part in file}
    assert MADE[name].shape("linear", {part: tensor.shape for part, tensor in parts.items()}) == (32, 128)
    weight, order = unpacked(MADE[name], parts)
    assert (order is not None) == (name == "gptq-act-order")
    assert torch.equal(in_model_order(weight.decoded(), order).half(), file["weight"])


LAYOUTS = [
    Layout("awq", 32), Layout("awq", 64), Layout("awq", -1), Layout("gptq", 64), Layout("gptq", 32, zero_point=False),
    Layout("gptq", 64, act_order=True), Layout("gptq", 128, version="gptq_v2"), Layout("gptq", 64, act_order=True, version="gptq_v2"),
]  # fmt: skip


def stored(layout, outputs=24, inputs=256, seed=0):
    """A random weight so stored, its inputs in the order of its groups, and what it is."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(inputs, generator=random) if layout.act_order else torch.arange(inputs)
    parts, held = pack(torch.randn(outputs, inputs, generator=random) * 0.02, layout, order)
    published = parse_config("config", layout.config)
    assert published.shape("linear", {part: tensor.shape for part, tensor in parts.items()}) == (outputs, inputs)
    weight, found = unpacked(published, parts)
    assert torch.equal(in_model_order(weight.decoded(), found), held)
    return weight, weight.decoded()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@settings(deadline=None, max_examples=10)
@given(st.integers(0, 99))
def test_codes_stay_in_our_formats(layout, seed):
    """GPUs hold the weight exactly, groups of ours being as large or smaller; CPUs to a step of int8 on either side."""
    weight, plain = stored(layout, seed=seed)
    for group_size in (32, 64, 128):
        if weight.group_size % group_size:
            continue
        fmt = WeightFormat("int4", 4, group_size, layout.zero_point)
        assert torch.equal(dequantize(quantize(weight, fmt, rungs=False), rungs=False), plain)
        on_cpu = quantize(weight, fmt)
        assert torch.equal(on_cpu.codes, weight.codes)
        assert ((dequantize(on_cpu) - plain).abs() <= 1.01 * on_cpu.scales[:, None]).all()
        assert (on_cpu.scales <= weight.steps.amax(1) / 8).all()  # an int8 step is an eighth of a code's or less


def test_small_steps_beside_large_ones_are_held_to_a_part_of_the_largest():
    weight, _ = stored(Layout("awq", 32))
    weight.steps[:, 3] *= 0.001
    held = dequantize(quantize(weight, WeightFormat("int4", 4, 32, True), rungs=False), rungs=False)
    assert ((held - weight.decoded()).abs() <= 15 * weight.steps.amax(1, keepdim=True) / 2**15).all()


def test_rows_are_taken_joined_and_filled_up_as_codes():
    (first, _), (second, _) = stored(Layout("awq", 64)), stored(Layout("awq", 64), seed=1)
    joined = torch.cat([first[3:7], second])
    padded = torch.nn.functional.pad(joined, (0, 0, 0, 5))
    assert isinstance(padded, StoredInt4) and padded.shape == (33, 256)
    want = torch.cat([first.decoded()[3:7], second.decoded(), torch.zeros(5, 256)])
    assert torch.equal(padded.decoded(), want)
    quantized = quantize(padded, parse("int4", 64, True), rungs=False)
    assert torch.equal(quantized.codes[4:28], second.codes) and torch.equal(dequantize(quantized, rungs=False), want)


def test_factors_are_the_steps():
    """Where a model multiplies what a linear makes."""
    weight, plain = stored(Layout("awq", 64))
    for scaled, want in ((weight * 4.0, plain * 4), (torch.tensor(4.0) * weight, plain * 4), (weight / torch.tensor(2.0), plain / 2)):
        assert isinstance(scaled, StoredInt4) and torch.equal(scaled.decoded(), want) and torch.equal(scaled.codes, weight.codes)


def test_every_other_op_sees_numbers():
    weight, plain = stored(Layout("awq", 64))
    for op in (lambda w: w + 2, lambda w: w * torch.arange(256), lambda w: w.T.contiguous(), lambda w: w[:, :64], lambda w: torch.cat([w, plain]), lambda w: torch.cat([w, w], 1),
               lambda w: torch.nn.functional.pad(w, (0, 1)), lambda w: w.bfloat16(), lambda w: w.index_select(1, torch.arange(9))):  # fmt: skip
        assert type(op(weight)) is torch.Tensor and torch.equal(op(weight), op(plain))
    for fmt in (BF16, INT8, parse("nvfp4")):
        assert torch.equal(round_trip(weight, fmt), round_trip(plain, fmt))


@pytest.mark.parametrize("fmt", [parse("int4", 128, True), parse("int4", 64)], ids=str)
def test_int4_that_does_not_hold_the_codes_is_refused(fmt):
    """Rounding them again would lose twice."""
    with pytest.raises(UserError, match=f"stored as int4g64z; expected a format that holds its codes, not {fmt}"):
        quantize(stored(Layout("awq", 64))[0], fmt)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_scale_that_is_no_number(bad):
    weight, _ = stored(Layout("awq", 64))
    weight.steps[7, 2] = bad
    with pytest.raises(UserError, match="row 7 has a scale that is NaN or infinite"):
        quantize(weight, parse("int4", 64, True))


@pytest.mark.parametrize("changes, message", [
    ({"quant_method": "compressed-tensors"}, "config: already quantized (compressed-tensors); expected bf16, fp16 or fp32 weights, or int4 by awq or gptq"),
    ({"bits": 8}, "config.bits: 8; expected 4 of gptq in this version"),
    ({"bits": "4"}, "config.bits: '4'; expected 4 of gptq in this version"),
    ({"bits": True}, "config.bits: True; expected 4 of gptq in this version"),
    ({"group_size": 16}, "config.group_size: 16; expected 32 or 64 or 128 or -1 of gptq in this version"),
    ({"group_size": [1]}, "config.group_size: [1]; expected 32 or 64 or 128 or -1 of gptq in this version"),
    ({"checkpoint_format": "marlin"}, "config.checkpoint_format: 'marlin'; expected gptq or gptq_v2 of gptq in this version"),
    ({"quant_method": "awq", "version": "gemv"}, "config.version: 'gemv'; expected gemm of awq in this version"),
    ({"pack_dtype": "int8"}, "config.pack_dtype: 'int8'; expected int32 of gptq in this version"),
    ({"is_marlin_format": True}, "config.is_marlin_format: True; expected False of gptq in this version"),
    ({"format": "gptq_v2"}, "config.format: gptq_v2, and checkpoint_format gptq; expected the same"),
    ({"quant_method": "awq", "checkpoint_format": "gemm", "backend": "llm-awq"}, "config.backend: 'llm-awq'; expected autoawq or auto of awq in this version"),
    ({"quant_method": "awq", "checkpoint_format": "gemv"}, "config.checkpoint_format: 'gemv'; expected gemm of awq in this version"),
    ({"quant_method": "awq", "checkpoint_format": "gemm", "zero_point": False}, "config.zero_point: False; expected True of awq in this version"),
    ({"sym": "yes"}, "config.sym: 'yes'; expected True or False of gptq in this version"),
])  # fmt: skip
def test_configs_that_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        parse_config("config", Layout("gptq").config | changes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("layout, part, shape, message", [
    (Layout("awq", 64), "qweight", (256, 4), r"linear.qweight: shape \[256, 4\]; expected \[256, 3\] of awq, 4 bits, groups of 64"),
    (Layout("awq", 64), "scales", (2, 24), r"linear.scales: shape \[2, 24\]; expected \[4, 24\] of awq"),
    (Layout("gptq", 64), "qzeros", (4,), r"linear.qzeros: shape \[4\]; expected two dimensions, none of them 0"),
    (Layout("gptq", -1), "qweight", (0, 24), r"linear.qweight: shape \[0, 24\]; expected two dimensions, none of them 0"),
    (Layout("gptq", -1), "g_idx", (128,), r"linear.g_idx: shape \[128\]; expected \[256\] of gptq, 4 bits, a group an output"),
    (Layout("gptq", 64), "scales", None, "linear.scales: no such tensor; expected qweight, qzeros, scales of a linear that gptq stored"),
])  # fmt: skip
def test_parts_that_do_not_fit_together(layout, part, shape, message):
    parts, _ = pack(torch.randn(24, 256), layout, torch.arange(256))
    shapes = {name: tuple(tensor.shape) for name, tensor in parts.items()} | {part: shape}
    with pytest.raises(UserError, match=message):
        parse_config("config", layout.config).shape("linear", {name: extents for name, extents in shapes.items() if extents})


def test_groups_of_different_sizes():
    g_idx = (torch.arange(256) // 64).int()
    g_idx[0] = 1
    with pytest.raises(UserError, match="linear.g_idx: groups of different sizes, or that do not exist; expected 64 inputs in each group"):
        Published("gptq", 64, True).order("linear", g_idx)
