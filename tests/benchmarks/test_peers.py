"""What `make peers` computes without running anything: ratios and their table, the checkpoints that peers get, rates."""

import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from slipway.compiler.machine import MachineLimits
from slipway.quantization.formats import INT8, round_trip

sys.path.append(str(Path(__file__).parent))  # for `import peers` under --import-mode=importlib

from peers import measure, quantized_checkpoint, random_checkpoint  # noqa: E402
from peers.measure import Figures  # noqa: E402
from peers.report import Standing, ratios, report  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

STANDINGS = [
    Standing("Slipway bf16", "bf16", True, Figures({1: 24.2, 8: 156.0, 32: 440.0}, 0.48, 0.06, 1.1, 0.85)),
    Standing("vLLM bf16", "bf16", False, Figures({1: 14.0, 8: 100.0, 32: 266.0}, 0.97, 0.08, 94.0)),
    Standing("Slipway int8", "int8", True, Figures({1: 46.2, 8: 236.0, 32: 537.0}, 0.47, 0.05, 0.36, 0.78)),
    Standing("Slipway int8, KV int8", "int8", True, Figures({1: 47.0, 8: 240.0, 32: 545.0}, 0.47, 0.05, 0.36, 0.9)),
    Standing("vLLM W8A8", "int8", False, Figures({1: 21.0, 8: 134.0, 32: 268.0}, 0.57, 0.07, 68.0)),
    Standing("vLLM W8A8, KV fp8", "int8", False, Figures({1: 20.0, 8: 130.0, 32: 268.5}, 0.6, 0.07, 68.0)),
    Standing("Slipway int4", "int4", True, Figures({1: 52.9, 8: 263.0, 32: 416.0}, 0.51, 0.05, 0.23, 0.63)),
    Standing("vLLM W4A16", "int4", False, Figures({1: 28.0, 8: 134.0, 32: 269.0}, 0.98, 0.08, 113.0)),
]


def test_report(golden):
    golden("benchmarks/peers.md", report(STANDINGS, MachineLimits(2, 35.5e9, 7e12), rounds=3) + "\n")


def test_ratios_compare_the_best_with_the_best():
    found = {ratio.what: ratio for ratio in ratios(STANDINGS)}
    at_32 = found["32 at once"]
    assert at_32.value == pytest.approx(545 / 269) and at_32.compared == "Slipway int8, KV int8 / vLLM W4A16" and at_32.reached
    at_32 = found["32 at once, KV in bf16"]
    assert at_32.value == pytest.approx(537 / 269) and at_32.compared == "Slipway int8 / vLLM W4A16" and not at_32.reached
    alone = found["batch 1, int8: of read bandwidth"]
    assert (alone.value, alone.compared, alone.reached) == (0.78, "Slipway int8", False)
    cold = found["first token of 1,024, cold, bf16"]
    assert cold.value == pytest.approx(0.48 / 0.97) and cold.reached
    start = found["process start to first token"]
    assert (start.value, start.compared, start.reached) == (1.1, "Slipway bf16", False)


def test_decoding_counts_from_the_last_first_token():
    assert measure.decode_rate([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]) == pytest.approx(3 / 2)


def test_a_rate_is_compared_with_reading_around_it():
    shares = [9 * 2 / 20, 8 * 2 / 40, 12 * 2 / 30]
    assert measure.read_share(2, [9.0, 8.0, 12.0], [10.0, 30.0, 50.0, 10.0]) == pytest.approx(sorted(shares)[1])


def test_medians_are_of_each_figure():
    turns = [Figures({1: rate}, cold, 0.1, 1.0, 0.5) for rate, cold in ((1.0, 0.3), (3.0, 0.1), (2.0, 0.2))]
    assert measure.median(turns) == Figures({1: 2.0}, 0.2, 0.1, 1.0, 0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "bf16"
    config = transformers.Qwen3Config(
        vocab_size=70_000, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=64, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    random_checkpoint.write_checkpoint(config, folder)
    return folder


def test_the_tokenizer_is_as_large_as_the_vocabulary(source):
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 70_000
    ids = tokenizer.encode("Slipway: größer").ids
    assert tokenizer.decode(ids) == "Slipway: größer" and max(ids) > 255


def unpack(tensors, name, scheme):
    """As the compressed-tensors format is documented."""
    scale = tensors[f"{name}_scale"].float()
    if scheme == "W8A8":
        return tensors[name].float() * scale
    words = tensors[f"{name}_packed"]
    codes = torch.stack([(words >> shift) & 15 for shift in range(0, 32, 4)], -1).flatten(1) - 8
    assert list(codes.shape) == tensors[f"{name}_shape"].tolist()
    return codes.float() * scale.repeat_interleave(quantized_checkpoint.GROUP_SIZE, 1)


@pytest.mark.parametrize(("scheme", "codes"), [("W8A8", 127), ("W4A16", 7)])
def test_quantized_checkpoints_are_near_the_original(source, tmp_path, scheme, codes):
    quantized_checkpoint.write_quantized(source, scheme, tmp_path / scheme)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / scheme))
    linears = [name for name in before if name.endswith("_proj.weight")]
    assert len(linears) == 7
    for name in linears:
        weight = before[name].float()
        step = weight.abs().max() / codes
        assert (unpack(after, name, scheme) - weight).abs().max() <= 0.6 * step  # half a step, and a scale rounded to bfloat16
        if scheme == "W8A8":
            torch.testing.assert_close(unpack(after, name, scheme), round_trip(weight, INT8), atol=float(step), rtol=0)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
