"""engine.json: written, read back, and refused in one sentence for everything that cannot be so."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from toy_engine import VOCAB, edit, edit_plan

from slipway.runtime import manifest as manifests
from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import File, Manifest, Operand

ABI = Path(__file__).parents[2] / "plugins" / "include" / "slipway" / "abi.hpp"


def refusal(directory):
    with pytest.raises(EngineError) as error:
        Manifest.read(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_what_it_wrote(toy):
    directory = toy()
    manifest = Manifest.read(directory)
    manifest.write(directory)
    assert Manifest.read(directory) == manifest


def test_a_moved_engine_is_the_same(toy, tmp_path):
    directory = toy()
    before = Manifest.read(directory)
    assert Manifest.read(shutil.move(directory, tmp_path / "elsewhere")) == before


def test_abi_version_is_that_of_the_header():
    assert f"abi_version = {manifests.ABI_VERSION};" in ABI.read_text()


@pytest.mark.parametrize("name", ["format_version", "abi_version"])
def test_another_version_is_refused(toy, name):
    directory = toy()
    body = json.loads((directory / "engine.json").read_text())
    (directory / "engine.json").write_text(json.dumps({**body, name: body[name] + 1}))
    assert f"{name} {body[name] + 1}, expected {body[name]}; build the engine with this Slipway" in refusal(directory)


def test_every_bit_of_the_manifest_counts(toy):
    directory = toy()
    path = directory / "engine.json"
    whole = bytearray(path.read_bytes())
    for at in range(0, len(whole), len(whole) // 97):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        try:
            Manifest.read(directory)
        except EngineError:
            continue
        assert chr(whole[at]).isspace(), f"byte {at} may change"


def test_no_engine(tmp_path):
    assert "no such file" in refusal(tmp_path)
    (tmp_path / "engine.json").write_text("{")
    assert "not JSON" in refusal(tmp_path)
    (tmp_path / "engine.json").write_text("[]")
    assert "no format_version" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["weights/next.bin", "kernels/toy.so", "tokenizer/tokenizer.json"])
def test_a_file_cut_short_or_missing_is_named(toy, name):
    directory = toy()
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1])
    assert name in refusal(directory) and "the engine is damaged" in refusal(directory)
    path.unlink()
    assert "no such file" in refusal(directory)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "a//b", "a\\b", "."])
def test_a_file_outside_the_directory_is_refused(toy, name):
    directory = toy()
    edit(directory, lambda m: replace(m, files={**m.files, name: File(1, "0")}))
    assert "stays inside the engine directory" in refusal(directory)


PLAN_FAULTS = {
    "arena": (lambda plan: {"arena_bytes": plan.arena_bytes - 64}, "at most arena_bytes"),
    "library": (lambda plan: {"library": "../toy.so"}, "stays inside"),
    "logits too narrow": (lambda plan: {"vocab_size": VOCAB + 15}, "f32"),
    "logits of tokens": (lambda plan: {"logits": Operand(0, 0, 64)}, "f32"),
    "buffer index": (lambda plan: {"logits": Operand(9, 0, 64)}, "index 9, expected 0..4"),
    "offset": (lambda plan: {"buffers": (replace(plan.buffers[0], offset=-64), *plan.buffers[1:])}, "-64, expected at least 0"),
    "alignment": (lambda plan: {"buffers": (replace(plan.buffers[0], offset=4), *plan.buffers[1:])}, "multiple of 64"),
    "dtype": (lambda plan: {"buffers": (replace(plan.buffers[0], dtype="f8"), *plan.buffers[1:])}, "one of bf16"),
    "weight index": (lambda plan: {"steps": (replace(plan.steps[0], weights=(2,)),)}, "index 2"),
    "kv layer": (lambda plan: {"steps": (replace(plan.steps[0], kv_layer=2),)}, "index 2"),
    "symbol": (lambda plan: {"steps": (replace(plan.steps[0], symbol="a b"),)}, "a C identifier"),
    "neither": (lambda plan: {"steps": (replace(plan.steps[0], symbol=None),)}, "exactly one of"),
    "batch inputs": (lambda plan: {"steps": (replace(plan.steps[0], batch_inputs=("positions",)),)}, "none: kernels see"),
    "rows": (lambda plan: {"steps": (replace(plan.steps[0], rows="lines"),)}, '"tokens" or "logit_rows"'),
    "operand": (lambda plan: {"steps": (replace(plan.steps[0], outputs=(Operand(0, 64, 64),)),)}, "inside its buffer"),
    "weight bytes": (lambda plan: {"weights": (replace(plan.weights[0], bytes=8), plan.weights[1])}, "as in weights/next.bin"),
    "no blocks": (lambda plan: {"kv": replace(plan.kv, num_blocks=0)}, "expected 1..2^30"),
    "too few blocks": (lambda plan: {"kv": replace(plan.kv, num_blocks=63)}, "room for max_sequence_length, 256"),
    "another block": (lambda plan: {"kv": replace(plan.kv, block_size=8)}, "KV blocks of 8 tokens"),
    "no weights": (lambda plan: {"steps": (replace(plan.steps[3], weights=()),)}, "of [] bytes, expected [1032], which the kernel needs"),
    "another weight": (lambda plan: {"steps": (replace(plan.steps[3], weights=(1,)),)}, "of [4] bytes, expected [1032]"),
    "no inputs": (lambda plan: {"steps": (replace(plan.steps[3], inputs=()),)}, "inputs: 0 of them, expected 1"),
    "no KV layer": (lambda plan: {"steps": (replace(plan.steps[0], kv_layer=None),)}, "kv_layer: none, expected a layer"),
    "no scratch": (lambda plan: {"local_scratch_bytes": 0}, "local_scratch_bytes 0, expected 4"),
    "rows that overlap": (lambda plan: {"logits": replace(plan.logits, row_bytes=1024)}, "rows of 1024 bytes, expected 258 f32"),
    "the end of a row": (lambda plan: {"logits": replace(plan.logits, offset=64)}, "where its buffer ends"),
    "rows of another kind": (lambda plan: {"steps": (replace(plan.steps[2], inputs=(Operand(2, 0, 64),)),)}, "a buffer of other rows, expected one of tokens"),
    "no kernel": (lambda plan: {"kernels": {}}, "one of plan.kernels"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLAN_FAULTS)
def test_a_plan_that_cannot_be_is_refused(toy, fault):
    directory = toy()
    change, words = PLAN_FAULTS[fault]
    edit_plan(directory, **change(Manifest.read(directory).plan))
    assert words in refusal(directory)


@pytest.mark.parametrize("change, words", [
    (lambda body: body.pop("plan"), "no key 'plan'"),
    (lambda body: body.update(colour="red"), "unknown key 'colour'"),
    (lambda body: body["limits"].update(max_sequences="4"), "limits.max_sequences: found str '4', expected int"),
    (lambda body: body["limits"].update(max_sequences=True), "expected int"),
    (lambda body: body["plan"]["steps"][2].update(inputs=3), "plan.steps[2].inputs: found int '3', expected list"),
])  # fmt: skip
def test_types_are_checked(toy, change, words):
    directory = toy()
    body = json.loads((directory / "engine.json").read_text())
    body.pop("checksum")
    change(body)
    text = json.dumps({"checksum": manifests._checksum(body), **body})
    (directory / "engine.json").write_text(text)
    assert words in refusal(directory)


@pytest.mark.parametrize(("options", "stride"), [({}, 1), ({"segment": True}, 4)], ids=["kernels", "segment"])
def test_no_number_of_a_manifest_brings_the_process_down(toy, options, stride):
    """Refused in one sentence, or run to the end: engine.json edited by hand is no more than a mistake."""
    mutants = Path(__file__).parent / "toy" / "mutants.py"
    done = subprocess.run([sys.executable, mutants, toy(**options), "3", str(stride)], capture_output=True, text=True)
    fates = done.stdout.splitlines()
    assert done.returncode == 0 and len(fates) > 300 // stride, done.stderr
    assert not [fate for fate in fates if not fate.startswith(("ran ", "refused "))], done.stderr
