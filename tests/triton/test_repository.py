"""The repository as written: golden configurations that Triton's own schema takes, and nothing of the user's replaced."""

import types

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from slipway.compiler import triton_repository
from slipway.compiler.errors import UserError
from slipway.compiler.triton_repository import Serving, write_repository

MANIFEST = types.SimpleNamespace(
    model="acme/demo-llama",
    limits=types.SimpleNamespace(max_sequences=64),
    target=types.SimpleNamespace(kind="cpu"),
    tokenizer=types.SimpleNamespace(),
)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setattr(triton_repository, "Manifest", types.SimpleNamespace(read=lambda _: MANIFEST))
    folder = tmp_path / "engine"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/a.bin").write_bytes(b"weights")
    return folder


def read_config(out, name):
    return text_format.Parse((out / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("contract", ["vllm", "tensorrt_llm"])
def test_configurations(engine, tmp_path, golden, contract):
    names = write_repository(engine, tmp_path / "out", contract, copy_engine=True, serving=Serving(threads=2, kv_tokens=4096))
    for name in names:
        golden(f"triton/{contract}.{name}.pbtxt", (tmp_path / "out" / name / "config.pbtxt").read_text())


@pytest.mark.parametrize("contract", ["vllm", "tensorrt_llm"])
@pytest.mark.parametrize("name", [None, "tensorrt_llm", "mine"])
def test_triton_can_parse_it(engine, tmp_path, contract, name):
    names = write_repository(engine, tmp_path / "out", contract, name=name)
    holder, *aliases = (read_config(tmp_path / "out", model) for model in names)
    inputs = {field.name: field for field in holder.input}
    outputs = {field.name for field in holder.output}
    assert holder.backend == "python" and holder.model_transaction_policy.decoupled
    for alias in aliases:
        (step,) = alias.ensemble_scheduling.step
        assert step.model_name == names[0] and set(step.input_map) == {field.name for field in alias.input} <= set(inputs)
        assert set(step.output_map) == {field.name for field in alias.output} <= outputs
        for field in alias.input:
            assert (field.data_type, list(field.dims)) == (inputs[field.name].data_type, list(inputs[field.name].dims))
            assert inputs[field.name].optional or not field.optional


def test_names(engine, tmp_path):
    assert write_repository(engine, tmp_path / "out", "vllm") == ("demo-llama",)
    assert write_repository(engine, tmp_path / "out", "tensorrt_llm", name="tensorrt_llm") == (
        "tensorrt_llm",
        "ensemble",
        "tensorrt_llm_bls",
    )


def test_nothing_is_left_for_the_user_to_fill_in(engine, tmp_path):
    write_repository(engine, tmp_path / "out", "tensorrt_llm")
    assert not any("${" in file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_the_engine_is_named_or_copied(engine, tmp_path):
    out = tmp_path / "out"
    write_repository(engine, out, "vllm")
    assert read_config(out, "demo-llama").parameters["engine"].string_value == str(engine)
    write_repository(engine, out, "vllm", copy_engine=True)
    copy = out / "demo-llama/1/engine"
    assert read_config(out, "demo-llama").parameters["engine"].string_value == "engine"
    assert (copy / "weights/a.bin").read_bytes() == b"weights"
    assert (copy / "weights/a.bin").stat().st_nlink == 1
    write_repository(copy, out, "vllm")
    assert (copy / "weights/a.bin").is_file()
    write_repository(engine, out, "vllm")
    assert not copy.exists()


def test_a_model_of_the_user_stays(engine, tmp_path):
    (tmp_path / "out/demo-llama").mkdir(parents=True)
    (tmp_path / "out/demo-llama/config.pbtxt").write_text('name: "demo-llama"\n')
    with pytest.raises(UserError, match="exists and is not a model that slipway wrote"):
        write_repository(engine, tmp_path / "out", "vllm")
    write_repository(engine, tmp_path / "out", "vllm", name="other")
    assert (tmp_path / "out/demo-llama/config.pbtxt").read_text() == 'name: "demo-llama"\n'


def test_an_engine_is_no_repository(engine, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/engine.json").write_text("{}")
    with pytest.raises(UserError, match="is an engine directory; expected a folder for the model repository"):
        write_repository(engine, tmp_path / "out")


def test_a_folder_that_cannot_be_made(engine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out: cannot be made: Not a directory"):
        write_repository(engine, tmp_path / "file/out")


def test_ids_alone_are_not_for_the_contract_of_text(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(MANIFEST, "tokenizer", None)
    with pytest.raises(UserError, match="no tokenizer, and the contract vllm takes text"):
        write_repository(engine, tmp_path / "out", "vllm")
    assert "tensorrt_llm" in write_repository(engine, tmp_path / "out", "tensorrt_llm")


@pytest.mark.parametrize(("options", "message"), [({"name": "a/b"}, "--name"), ({"contract": "tgi"}, "--contract: tgi")])
def test_refused(engine, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        write_repository(engine, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
