"""Checkpoints: what is read, without more than is asked for, and one clear error for each thing that is wrong."""

import json
import resource
import shutil

import pytest
import torch
from published import Layout, publish
from safetensors.torch import load_file, save_file
from slipway.compiler.checkpoint import INDEX, Checkpoint
from slipway.compiler.errors import UserError
from slipway.compiler.graph import WeightInfo
from slipway.compiler.verify import plain_weights
from slipway.quantization.formats import WeightFormat


@pytest.fixture
def directory(tiny, tmp_path):
    return shutil.copytree(tiny("llama").checkpoint.directory, tmp_path / "model")


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(directory):
    """Splits the one file into two with an index."""
    whole = Checkpoint(directory)
    names = sorted(whole)
    parts = {"model-1-of-2.safetensors": names[:5], "model-2-of-2.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / INDEX).write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def error(directory):
    with pytest.raises(UserError) as raised:
        Checkpoint(directory)
    return str(raised.value).replace(str(directory), "MODEL")


def test_reads_tensors_by_name(tiny):
    checkpoint, state = tiny("llama").checkpoint, tiny("llama").model.state_dict()
    assert set(checkpoint) == set(state) and len(checkpoint) == len(state)
    assert all(torch.equal(checkpoint[name], state[name]) for name in state)
    assert checkpoint.info("model.norm.weight") == WeightInfo((64,), torch.float32)


def test_shards(directory):
    whole = {name: tensor.clone() for name, tensor in Checkpoint(directory).items()}
    shard(directory)
    checkpoint = Checkpoint(directory)
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in whole.items())
    assert [path.name for path in checkpoint.files()] == ["config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    assert [path.name for path in checkpoint.files_of(min(whole))] == ["model-1-of-2.safetensors"]


def test_tensors_are_mapped_not_copied(directory):
    """Reading one tensor of a sparse file of 4 GB touches the pages that are looked at."""
    rows, columns = 1 << 15, 1 << 16
    header = json.dumps({"big": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, 2 * rows * columns]}}).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * rows * columns)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensor = Checkpoint(directory)["big"]
    assert tensor.shape == (rows, columns) and tensor[-1, -1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_lists_the_tokenizer_files_there_are(directory):
    (directory / "tokenizer.json").write_text("{}")
    names = [path.name for path in Checkpoint(directory).tokenizer_files()]
    assert names == ["tokenizer.json", "generation_config.json"]


def test_no_directory(tmp_path):
    assert error(tmp_path / "no") == "MODEL: no such directory; expected a Hugging Face checkpoint"


def test_no_config(directory):
    (directory / "config.json").unlink()
    assert error(directory) == "MODEL: no config.json; expected a Hugging Face checkpoint"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_config(directory, text):
    (directory / "config.json").write_text(text)
    assert error(directory).startswith("MODEL/config.json: ")


def test_unknown_architecture(directory):
    change_config(directory, model_type="nosuch", architectures=["NoSuchModel"])
    assert error(directory).startswith("MODEL/config.json: architectures: NoSuchModel; expected a causal language model")


def test_not_a_language_model(directory):
    change_config(directory, architectures=["LlamaForSequenceClassification"])
    assert error(directory).startswith("MODEL/config.json: architectures: LlamaForSequenceClassification; expected a causal")


def test_config_refused_by_transformers(directory):
    change_config(directory, hidden_size="many")
    assert error(directory).startswith("MODEL/config.json: refused by transformers: ")


def test_already_quantized(directory):
    change_config(directory, quantization_config={"quant_method": "compressed-tensors"})
    assert error(directory).startswith("MODEL/config.json: quantization_config: already quantized (compressed-tensors); expected bf16")


def test_no_safetensors(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    assert error(directory).endswith("hint: convert it with transformers' save_pretrained")


@pytest.mark.parametrize("size", [4, 200, -8])
def test_truncated_file(directory, size):
    path = directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:size])
    assert error(directory).startswith("MODEL/model.safetensors: damaged: ")


def test_missing_shard(directory):
    shard(directory)
    (directory / "model-2-of-2.safetensors").unlink()
    assert error(directory) == "MODEL/model-2-of-2.safetensors: no such file\nhint: download the checkpoint again"


def test_index_that_names_files_elsewhere(directory):
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    assert error(directory).startswith(f"MODEL/{INDEX}: weight_map: not a table of file names")


def test_index_that_disagrees_with_the_shards(directory):
    shard(directory)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-1-of-2.safetensors"
    (directory / INDEX).write_text(json.dumps(index))
    assert error(directory).startswith(f"MODEL/{INDEX}: model.extra.weight: not in model-1-of-2.safetensors")


def test_unknown_tensor(tiny):
    with pytest.raises(UserError, match="no tensor model.nothing"):
        tiny("llama").checkpoint["model.nothing"]
    assert "model.nothing" not in tiny("llama").checkpoint


def test_unsupported_type(directory):
    save_file({"a": torch.zeros(2, dtype=torch.int32)}, directory / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors: a: type I32; expected BF16, F16, F32"):
        Checkpoint(directory).info("a")


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def int4(tiny, tmp_path):
    """int4(layout) -> a checkpoint so stored, and the weights it stands for."""

    def make(layout):
        return tmp_path / "int4", publish(tiny("llama").checkpoint.directory, tmp_path / "int4", layout)

    return make


@pytest.mark.parametrize("layout", [Layout("awq", 32), Layout("gptq", 32), Layout("gptq", 32, zero_point=False, act_order=True)], ids=str)
def test_int4_linears_have_the_names_of_their_weights(tiny, int4, layout):
    directory, held = int4(layout)
    checkpoint, plain = Checkpoint(directory), tiny("llama").checkpoint
    assert set(checkpoint) == set(plain) and checkpoint.quantization and not hasattr(checkpoint.config, "quantization_config")
    assert checkpoint.info(f"{Q_PROJ}.weight") == WeightInfo((64, 64), torch.float16, WeightFormat("int4", 4, layout.group_size, layout.zero_point))
    weights = plain_weights(checkpoint)
    assert held and all(torch.equal(weights[name], tensor) for name, tensor in held.items())


def test_those_who_read_the_same_activations_share_an_order(int4):
    checkpoint = Checkpoint(int4(Layout("gptq", 32, act_order=True))[0])
    orders = {part: checkpoint.order_of(f"model.layers.1.{part}.weight") for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")}
    assert orders["self_attn.q_proj"] == orders["self_attn.v_proj"] and len(set(orders.values())) == 3
    assert checkpoint.info(orders["mlp.up_proj"]) == WeightInfo((64,), torch.int64)
    assert checkpoint.order_of("model.norm.weight") is None


def test_parts_of_an_int4_linear_in_several_files(int4):
    directory, held = int4(Layout("awq", 32))
    tensors = load_file(directory / "model.safetensors")
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(".scales")}
    parts = {"model-1-of-2.safetensors": {n: t for n, t in tensors.items() if n not in scales}, "model-2-of-2.safetensors": scales}
    for file, part in parts.items():
        save_file(part, directory / file)
    (directory / INDEX).write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    (directory / "model.safetensors").unlink()
    checkpoint = Checkpoint(directory)
    assert torch.equal(checkpoint[f"{Q_PROJ}.weight"].decoded(), held[f"{Q_PROJ}.weight"])
    assert [path.name for path in checkpoint.files_of(f"{Q_PROJ}.weight")] == list(parts)


def test_zeros_that_a_symmetric_checkpoint_has_not(int4):
    """Such as those of version 1 that are said to be of version 2."""
    directory, _ = int4(Layout("gptq", 32, zero_point=False))
    change_config(directory, quantization_config=Layout("gptq", 32, zero_point=False, version="gptq_v2").config)
    with pytest.raises(UserError, match="q_proj.qzeros: zeros that are not the middle of the codes; expected 8, .*\\nhint: is its checkpoint_format, or its sym, another?"):
        Checkpoint(directory)[f"{Q_PROJ}.weight"]


@pytest.mark.parametrize("damage, message", [
    (lambda t: t.pop(f"{Q_PROJ}.scales"), f"{Q_PROJ}.scales: no such tensor; expected qweight, qzeros, scales of a linear that gptq stored"),
    (lambda t: t.update({f"{Q_PROJ}.qzeros": t[f"{Q_PROJ}.qzeros"][:1]}), f"{Q_PROJ}.qzeros: shape [1, 8]; expected [2, 8] of gptq, 4 bits, groups of 32"),
    (lambda t: t.update({f"{Q_PROJ}.qweight": t[f"{Q_PROJ}.qweight"].float()}), f"{Q_PROJ}.qweight: type F32; expected I32"),
    (lambda t: t.update({f"{Q_PROJ}.g_idx": t[f"{Q_PROJ}.g_idx"] + 1}), f"{Q_PROJ}.g_idx: groups of different sizes, or that do not exist; expected 32"),
    (lambda t: [t.pop(name) for name in list(t) if name.endswith(".qweight")], "no tensor whose name ends in .qweight; expected linears that gptq stored"),
])  # fmt: skip
def test_damaged_int4_linears(int4, damage, message):
    directory, _ = int4(Layout("gptq", 32))
    tensors = load_file(directory / "model.safetensors")
    damage(tensors)
    save_file(tensors, directory / "model.safetensors")
    assert message in error(directory)
