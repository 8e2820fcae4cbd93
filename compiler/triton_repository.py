"""Turns an engine directory into a Triton model repository, complete: nothing in it is left for the user to fill in.

One Python model holds the engine. Triton runs each Python model in a process of its own, so the other names of a contract
are Triton ensembles of one step that pass everything on: one engine, one KV cache, whatever the name.
"""

from __future__ import annotations

import pathlib
import re
import shutil
from dataclasses import asdict, dataclass

import jinja2

from slipway.compiler import disk
from slipway.compiler.errors import UserError
from slipway.compiler.triton_contracts import TENSORRT_LLM, VLLM, Fields, merge
from slipway.runtime.manifest import Manifest

MARK = "Written by slipway triton"
CONTRACTS = ("vllm", "tensorrt_llm")
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates/triton"),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Serving:
    """How Triton runs the engine. decoupled: streams, which plain `infer` calls cannot receive; without it one response
    a request, by `infer` too. threads, kv_tokens, max_queued, verify, emulate: of Engine.load, None for the engine's own."""

    decoupled: bool = True
    threads: int | None = None
    kv_tokens: int | None = None
    max_queued: int = 1024
    verify: bool = True
    emulate: bool | None = None


def write_repository(
    engine: pathlib.Path,
    out: pathlib.Path,
    contract: str = "vllm",
    *,
    name: str | None = None,
    copy_engine: bool = False,
    serving: Serving = Serving(),
) -> tuple[str, ...]:
    """Adds the contract's models to the repository `out` and gives their names, the one that holds the engine first.

    name: of that one; by default the engine's model for vllm, `ensemble` for tensorrt_llm. copy_engine: the repository
    then works wherever it is moved to; otherwise it names the engine's absolute path, unless the engine is already where
    a copy would be.
    """
    manifest = Manifest.read(engine)
    if contract not in CONTRACTS:
        raise UserError("--contract", contract, " or ".join(CONTRACTS))
    name = check_name(name or default_name(manifest, contract))
    aliases = {} if contract == "vllm" else {alias: f for alias, f in TENSORRT_LLM.items() if alias != name}
    check_takes_text(engine, manifest, contract)
    check_repository(out)
    for model in (name, *aliases):
        check_replaceable(out / model)
    max_batch_size = 0 if contract == "vllm" else manifest.limits.max_sequences
    about = {"about": f"{MARK}: {manifest.model}, contract {contract}", "max_batch_size": max_batch_size}
    writer = ModelWriter(out, about)
    own = VLLM if contract == "vllm" else merge(TENSORRT_LLM.get(name, TENSORRT_LLM["ensemble"]), *aliases.values())
    kind = "KIND_CPU" if manifest.target.kind == "cpu" else "KIND_MODEL"
    where = place_engine(engine, out, out / name / "1", copy_engine)
    writer.write_engine_model(name, own, kind, serving, {"contract": contract, "engine": where})
    for alias, fields in aliases.items():
        writer.write_alias(alias, fields, name)
    return (name, *aliases)


@dataclass(frozen=True)
class ModelWriter:
    repository: pathlib.Path
    about: dict  # what every template is given

    def write_engine_model(self, name: str, fields: Fields, kind: str, serving: Serving, parameters: dict) -> None:
        settings = {key: value for key, value in asdict(serving).items() if key != "decoupled" and value is not None}
        written = {key: str(value).lower() for key, value in settings.items()}
        values = vars(fields) | {"kind": kind, "decoupled": serving.decoupled, "parameters": parameters | written}
        self._write(name, "config.pbtxt", "engine.pbtxt.j2", values)
        self._write(name, "1/model.py", "model.py.j2", {})

    def write_alias(self, name: str, fields: Fields, target: str) -> None:
        self._write(name, "config.pbtxt", "alias.pbtxt.j2", vars(fields) | {"target": target})
        (self.repository / name / "1").mkdir(exist_ok=True)

    def _write(self, name: str, path: str, template: str, values: dict) -> None:
        file = self.repository / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TEMPLATES.get_template(template).render(self.about | {"name": name} | values))


def default_name(manifest: Manifest, contract: str) -> str:
    if contract == "tensorrt_llm":
        return "ensemble"
    return re.sub(r"[^A-Za-z0-9_.-]", "-", manifest.model.rstrip("/").split("/")[-1])


def check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError("--name", repr(name), "letters, digits, '_', '.' and '-'")
    return name


def check_takes_text(engine: pathlib.Path, manifest: Manifest, contract: str) -> None:
    if contract == "vllm" and manifest.tokenizer is None:
        raise UserError(str(engine), "the engine has no tokenizer, and the contract vllm takes text", hint="--contract tensorrt_llm takes token ids too")


def check_repository(out: pathlib.Path) -> None:
    """Makes the folder. Raises UserError where it cannot be, or is another thing."""
    if (out / "engine.json").exists():
        raise UserError(str(out), "is an engine directory", "a folder for the model repository")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out):.200}", f"cannot be made: {error.strerror}", "a folder that can be written") from None


def check_replaceable(folder: pathlib.Path) -> None:
    """A model of ours may be written again; anything else stays."""
    config = folder / "config.pbtxt"
    ours = config.is_file() and config.read_text(errors="replace").startswith(f"# {MARK}")
    if folder.exists() and not ours:
        raise UserError(str(folder), "exists and is not a model that slipway wrote", hint="another --name or -o")


def place_engine(engine: pathlib.Path, out: pathlib.Path, version: pathlib.Path, copy_engine: bool) -> str:
    """The engine's path as the model names it: in its version folder, or absolute. Replaces an old copy."""
    copy = version / "engine"
    if engine.resolve() == copy.resolve():
        return "engine"
    if copy.exists():
        shutil.rmtree(copy)
    if copy_engine:
        shutil.copytree(engine, copy, copy_function=disk.copy)
        return "engine"
    return str(engine.resolve())
