"""An engine directory -> a native engine: checked against this machine, mapped, compared with its hashes."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass

from slipway.runtime import gpu, integrity, machine
from slipway.runtime.errors import EngineError, MachineError
from slipway.runtime.manifest import Manifest
from slipway.runtime.parallel import for_each
from slipway.runtime.vocabulary import FILE_NAME, Vocabulary


GPU_MARGIN_BYTES = 512 << 20  # for graphs, modules and the inputs of steps
MAX_THREADS, MAX_KV_TOKENS = 1024, (1 << 31) - 1


@dataclass(frozen=True)
class Options:
    """threads: None for as many as the recipe says, every usable core by default. kv_tokens: None for what the recipe says.

    verify: compare all files with hashes. max_queued: requests that may wait for their first step; further ones are refused.
    emulated: the seed, where a GPU is to be emulated.
    """

    threads: int | None = None
    kv_tokens: int | None = None
    verify: bool = True
    max_queued: int = 1024
    emulated: int | None = None

    def __post_init__(self):
        for name in ("threads", "kv_tokens", "max_queued"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise EngineError(name, f"{value!r}", "a whole number of at least 1")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise EngineError("threads", f"{self.threads}", f"at most {MAX_THREADS}")

    @property
    def num_threads(self) -> int:
        return self.threads or machine.usable_cores()


def stated_threads(manifest: Manifest) -> int | None:
    """The recipe's cpu.threads, None for auto."""
    threads = manifest.recipe.get("cpu", {}).get("threads", "auto")
    return None if threads == "auto" else threads


def has_auto_cache(manifest: Manifest) -> bool:
    """The size of the KV cache is chosen at load, by the machine."""
    return manifest.recipe.get("limits", {}).get("kv_cache_tokens") == "auto"


def check_machine(manifest: Manifest, where: pathlib.Path, emulated: int | None = None) -> None:
    """Raises MachineError if this processor, or its GPU, cannot run the engine's kernels."""
    if manifest.target.is_gpu and emulated is None:
        gpu.check(manifest.target, str(where))
        if any(launch.matmul for needs in manifest.plan.kernels.values() for launch in needs.launches):
            gpu.load_cublaslt(str(where))
        return
    missing = [flag for flag in manifest.target.cpu_flags if flag not in machine.cpu_flags()]
    if missing and manifest.target.is_gpu:
        raise MachineError(str(where), f"this CPU lacks {', '.join(missing)}, which emulating a GPU takes")
    if missing:
        raise MachineError(
            str(where),
            f"built for {manifest.target.isa}; this CPU lacks {', '.join(missing)}",
            hint="build it again on this machine with cpu.isa: auto",
        )


def choose_blocks(manifest: Manifest, options: Options) -> int:
    """KV blocks to allocate. Raises MachineError if they, or anything else, would not fit."""
    plan, limits = manifest.plan, manifest.limits
    block_bytes = plan.kv.layers * plan.kv.block_bytes
    scratch = plan.arena_bytes + plan.shared_scratch_bytes + plan.local_scratch_bytes * options.num_threads
    rest = scratch + sum(weight.bytes for weight in plan.weights)  # the logits lie in the arena
    if manifest.target.is_gpu:
        rest += GPU_MARGIN_BYTES if options.emulated is None else sum(weight.bytes for weight in plan.weights)  # an emulated GPU has them again
    available = gpu.available_bytes() if manifest.target.is_gpu and options.emulated is None else machine.available_bytes()
    if options.kv_tokens is not None:
        blocks = -(-options.kv_tokens // plan.kv.block_size)
    else:
        blocks = plan.kv.blocks_within(available - rest, limits) if has_auto_cache(manifest) else plan.kv.num_blocks
    if rest + blocks * block_bytes > available:
        fitting = max(0, (available - rest) // max(1, block_bytes)) * plan.kv.block_size
        raise MachineError(
            "memory",
            f"{_gib(rest)} for weights and activations and {_gib(blocks * block_bytes)} for {blocks * plan.kv.block_size} KV tokens",
            f"at most the {_gib(available)} available",
            f"ask for kv_tokens of at most {fitting}" if fitting else "weights and activations alone do not fit",
        )
    if blocks * plan.kv.block_size > MAX_KV_TOKENS:
        raise EngineError("kv_tokens", f"{blocks * plan.kv.block_size}", f"at most {MAX_KV_TOKENS}")
    return blocks


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def map_files(manifest: Manifest, directory: pathlib.Path, options: Options) -> list:
    """The weights, mapped; their pages are in place, and compared with their hashes if so asked."""
    from slipway.runtime import _native

    weights = [_native.Mapping(str(directory / "weights" / w.file), w.bytes) for w in manifest.plan.weights]
    if options.verify:
        mapped = {f"weights/{w.file}": mapping for w, mapping in zip(manifest.plan.weights, weights, strict=True)}
        integrity.verify(manifest, directory, mapped, options.num_threads)
    else:
        for_each(lambda mapping: mapping.populate(), weights, options.num_threads)
    return weights


def request_amx(manifest: Manifest) -> None:
    if "amx_tile" in manifest.target.cpu_flags:
        from slipway.runtime import _native

        _native.request_amx()


def tokenizer_of(manifest: Manifest, directory: pathlib.Path):
    """tokenizers.Tokenizer, or None for an engine without."""
    if manifest.tokenizer is None:
        return None
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would take the team's cores
    from tokenizers import Tokenizer

    path = directory / "tokenizer" / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise EngineError(str(path), f"not a tokenizer ({error})", hint="the engine is damaged: copy or build it again") from None


def vocabulary_of(manifest: Manifest, directory: pathlib.Path) -> Vocabulary:
    """Without tokens for an engine without a tokenizer."""
    return Vocabulary.read(directory / "tokenizer" / FILE_NAME) if manifest.tokenizer else Vocabulary([], [], False)


def bind_segments(manifest: Manifest, directory: pathlib.Path, native, options: Options) -> None:
    """Gives the native engine a runner for the plan's ONNX segments, if it has any."""
    if any(step.segment for step in manifest.plan.steps):
        from slipway.runtime.segments import Segments

        segments = Segments(manifest, directory, options.num_threads)
        segments.bind(native.arena())
        native.run_segments_with(segments.run)
