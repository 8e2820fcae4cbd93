"""`slipway recipes`, `doctor` and `triton`."""

import json

from slipway.compiler.cli import doctor
from slipway.recipes import catalog


def test_recipes_lists_them_all(cli):
    lines = cli("recipes").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == catalog.names()
    assert [entry["name"] for entry in json.loads(cli("recipes", "--json").out)] == catalog.names()


def test_recipes_show(cli):
    outcome = cli("recipes", "show", "demo-llama/cpu-int4")
    assert outcome.out == catalog.find("demo-llama/cpu-int4").read_text()
    assert json.loads(cli("recipes", "show", "demo-llama/cpu-int4", "--resolved").out)["precision"]["lm_head"] == "int8"
    assert cli("recipes", "show", "demo-llama/cpu-int5").code == 2


def test_recipes_schema(cli):
    assert cli("recipes", "--schema").out == (catalog.ROOT / "recipe.schema.json").read_text()


def test_doctor_names_what_is_missing(cli, monkeypatch):
    missing = doctor.Finding("C++ compiler", False, "c++ does not run", "apt-get install g++")
    monkeypatch.setattr(doctor, "examine", lambda measure: [doctor.Finding("Python", True, "3.11"), missing])
    outcome = cli("doctor")
    assert outcome.code == 2
    assert outcome.out == "ok   Python        3.11\nmiss C++ compiler  c++ does not run; apt-get install g++\n"


def test_doctor_json(cli):
    findings = {finding["name"]: finding for finding in json.loads(cli("doctor", "--json").out)}
    assert findings["CUDA compiler"]["ok"] and "sm120" in findings["CUDA compiler"]["text"]
    assert findings["GPU"]["ok"] or findings["GPU"]["text"].endswith("engines for GPUs run by emulation (--emulate)")
    assert {"Python", "C++ compiler", "processor", "memory", "runtime", "Triton"} <= findings.keys()


def test_triton_writes_a_repository(cli, engine_dir, tmp_path):
    outcome = cli("triton", engine_dir, "-o", tmp_path / "repository", "--contract", "tensorrt_llm", "--name", "tensorrt_llm")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'repository'}: tensorrt_llm, ensemble, tensorrt_llm_bls\n")
    assert (tmp_path / "repository" / "ensemble" / "config.pbtxt").is_file()
