"""Compares an engine with the checkpoint it came from, on a fixed text: its own kernels against transformers in float32."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from slipway.compiler.cache import StageCache, digest
from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.errors import InternalError
from slipway.compiler.identity import Identities
from slipway.compiler.machine import processor
from slipway.compiler.quantities import bytes_text
from slipway.compiler.target import GPUS
from slipway.compiler.version import runtime_digest, source_digest
from slipway.quantization.stored import StoredInt4
from slipway.recipes.schema import Recipe
from slipway.runtime import gpu
from slipway.runtime.machine import available_bytes, usable_cores
from slipway.runtime.manifest import FILE_NAME, Launch, Manifest

TEXT = pathlib.Path(__file__).resolve().parent.parent / "recipes" / "heldout.txt"
WINDOW = 256  # tokens
WINDOWS, WINDOWS_EMULATED = 8, 2
LIBRARIES = ("numpy", "onnxruntime", "torch", "transformers")
LARGE_MODEL_PARAMETERS = 100_000_000  # from here on one window must do: float32 in torch is slow
MOST_EMULATED = 2_000_000_000  # parameters of a model for a GPU that is emulated: about a nanosecond each for a token
MEMORY_SHARE = 0.6  # of what is free, for the reference


@dataclass(frozen=True)
class Accuracy:
    """kl: mean over tokens of KL(checkpoint || engine), nats. top1: share of tokens where both think the same likeliest.

    perplexity_ratio: engine over checkpoint on the text itself. limit: the largest kl the recipe lets through.
    """

    kl: float
    kl_max: float
    top1: float
    perplexity_ratio: float
    tokens: int
    limit: float


def declined(recipe: Recipe, checkpoint: Checkpoint) -> str | None:
    """Why this build goes without a measurement, None if it does not."""
    if recipe.verify.when == "never":
        return "verify.when is never"
    if _is_emulated(recipe.target) and num_parameters(checkpoint) > MOST_EMULATED and recipe.verify.when == "auto":
        return f"emulating a GPU with {num_parameters(checkpoint) / 1e9:.1f} billion parameters takes hours"
    needed, available = 4 * num_parameters(checkpoint), available_bytes()
    if recipe.verify.when == "auto" and needed >= MEMORY_SHARE * available:
        return f"the checkpoint takes {bytes_text(needed)} in float32, {bytes_text(available)} of memory are free"
    return None


def verify(recipe: Recipe, checkpoint: Checkpoint, engine: pathlib.Path, cache: StageCache, identities: Identities) -> Accuracy:
    """The engine's accuracy. Raises UserError on a miss."""
    windows = token_windows(checkpoint, Manifest.read(engine).limits.max_sequence_length, WINDOWS_EMULATED if _is_emulated(recipe.target) else WINDOWS)
    parts = accuracy_parts(Manifest.read(engine), checkpoint, windows, identities)
    measured = cache.fetch("accuracy", recipe.model, parts, lambda out: out.write_text(json.dumps(_measure(checkpoint, engine, windows, recipe.target))))
    accuracy = Accuracy(**json.loads(measured.read_text()), limit=recipe.verify.kl)
    if not accuracy.kl <= accuracy.limit:
        raise recipe.error(("verify", "kl"), f"the engine misses its accuracy: KL {accuracy.kl:.2g} nats a token", f"at most {accuracy.limit:g}",
                           "raise the precision (precision.weights, precision.lm_head, a smaller group_size), or state what you accept")
    return accuracy


def accuracy_parts(described: Manifest, checkpoint: Checkpoint, windows: np.ndarray, identities: Identities) -> dict[str, str]:
    """What the measurement depends on: both models, the code and the machine that run them, the text."""
    return {
        "files": digest(json.dumps({name: file.xxh3_128 for name, file in described.files.items()}, sort_keys=True)),
        "plan": digest(str((described.plan, described.limits, described.target))),
        "threads": str(described.recipe["cpu"]["threads"]),
        "checkpoint": digest("".join(identities.file(path) for path in checkpoint.files())),
        "tokens": digest(windows.tobytes()),
        "slipway": source_digest("compiler/verify.py", "compiler/checkpoint.py", "compiler/int4_linears.py", "quantization"),
        "runtime": runtime_digest(),
        "libraries": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES),
        "machine": f"{processor()}, {usable_cores()} cores{', a GPU' * (described.target.is_gpu and gpu.is_here(described.target.kind))}",
    }


def num_parameters(checkpoint: Checkpoint) -> int:
    return sum(math.prod(checkpoint.info(name).shape) for name in checkpoint)


def token_windows(checkpoint: Checkpoint, max_sequence_length: int, most: int = WINDOWS) -> np.ndarray:
    """Token ids int32 [windows, tokens] of the fixed text; random ones for a checkpoint without a tokenizer."""
    length = min(WINDOW, max_sequence_length)
    count = most if num_parameters(checkpoint) < LARGE_MODEL_PARAMETERS else 1
    path, vocab = checkpoint.directory / "tokenizer.json", checkpoint.config.vocab_size
    if path.exists():
        ids = np.array(Tokenizer.from_file(str(path)).encode(TEXT.read_text()).ids, np.int32)
    else:
        ids = np.random.default_rng(0).integers(0, vocab, WINDOW * WINDOWS).astype(np.int32)
    count = min(count, len(ids) // length)
    return np.minimum(ids[: count * length], vocab - 1).reshape(count, length)


def _measure(checkpoint: Checkpoint, engine: pathlib.Path, windows: np.ndarray, target: str) -> dict[str, Any]:
    reference = torch.log_softmax(_reference_logits(checkpoint, windows), -1)
    found = torch.log_softmax(torch.from_numpy(engine_logits(engine, windows, target)), -1)
    kl = (reference.exp() * (reference - found)).sum(-1)
    nexts = torch.from_numpy(windows[:, 1:].astype(np.int64))[..., None]
    surprise = [logprobs[:, :-1].gather(-1, nexts).mean() for logprobs in (reference, found)]
    return {
        "kl": kl.mean().item(),
        "kl_max": kl.max().item(),
        "top1": (reference.argmax(-1) == found.argmax(-1)).float().mean().item(),
        "perplexity_ratio": (surprise[0] - surprise[1]).exp().item(),
        "tokens": windows.size,
    }


@torch.no_grad()
def _reference_logits(checkpoint: Checkpoint, windows: np.ndarray) -> torch.Tensor:
    with _without_bars():
        model = (_from_codes(checkpoint) if checkpoint.quantization else _as_stored(checkpoint)).eval()
    return torch.cat([model(torch.from_numpy(window[None].astype(np.int64)), use_cache=False).logits for window in windows])


def _as_stored(checkpoint: Checkpoint) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32, local_files_only=True)


def _from_codes(checkpoint: Checkpoint) -> PreTrainedModel:
    """transformers' model of plain linears, with the weights that the checkpoint's codes stand for."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(checkpoint.config)]
    return kind.from_pretrained(None, config=checkpoint.config, state_dict=plain_weights(checkpoint), dtype=torch.float32, attn_implementation="eager")


def plain_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All tensors by name, those stored as codes in float32, as the model has them."""
    tensors = {}
    for name, tensor in checkpoint.items():
        order = checkpoint.order_of(name)
        plain = tensor.decoded() if isinstance(tensor, StoredInt4) else tensor
        tensors[name] = plain[:, checkpoint[order].argsort()] if order else plain
    return tensors


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """transformers would draw its bars into ours."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def engine_logits(engine: pathlib.Path, windows: np.ndarray, target: str) -> np.ndarray:
    """f32 [windows, tokens, vocab]: what the engine says after each token, from a process of the runtime alone."""
    with tempfile.TemporaryDirectory() as folder:
        tokens, logits = pathlib.Path(folder) / "tokens.npy", pathlib.Path(folder) / "logits.npy"
        np.save(tokens, windows)
        measured = _with_coded_activations(engine, pathlib.Path(folder) / "engine")
        command = [sys.executable, "-m", "slipway.runtime.score", str(measured), str(tokens), str(logits)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(target))
        if done.returncode:
            raise InternalError(f"the engine just built does not run:\n{done.stderr[-4000:]}")
        return np.load(logits)


def _with_coded_activations(engine: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """The engine, or, if its largest steps have activations of few bits, a copy of it that runs every step, of however few rows, as it runs those."""
    manifest = Manifest.read(engine)
    most, needs = manifest.limits.max_batch_tokens, manifest.plan.kernels
    largest = {symbol: tuple(launch for launch in each.launches if _takes_part(launch, most)) for symbol, each in needs.items()}
    if not any(launch.matmul and launch.matmul.factors != "bf16" for launches in largest.values() for launch in launches):
        return engine
    copy.mkdir()
    for part in engine.iterdir():
        if part.name != FILE_NAME:
            (copy / part.name).symlink_to(part.resolve())
    kernels = {symbol: replace(each, launches=tuple(replace(launch, min_rows=1) for launch in largest[symbol])) for symbol, each in needs.items()}
    replace(manifest, plan=replace(manifest.plan, kernels=kernels)).write(copy)
    return copy


def _takes_part(launch: Launch, rows: int) -> bool:
    return launch.min_rows <= rows <= (launch.max_rows or rows)


def _is_emulated(target: str) -> bool:
    """A GPU that is not here is."""
    return target in GPUS and not gpu.is_here(target)


def _environment(target: str) -> dict[str, str]:
    """Of a process that runs an engine for the target."""
    return {gpu.VARIABLE: "emulated", **os.environ} if _is_emulated(target) else {**os.environ}


def try_loading(engine: pathlib.Path, target: str) -> None:
    """Loads the engine in a process of the runtime alone: what the runtime would refuse is not published."""
    done = subprocess.run([sys.executable, "-m", "slipway.runtime.trial", str(engine)], capture_output=True, text=True, env=_environment(target))
    if done.returncode:
        raise InternalError(f"the engine just built does not load:\n{done.stderr[-4000:]}")


def write(accuracy: Accuracy, engine: pathlib.Path) -> None:
    """verify.json: what was compared, and how close it came."""
    (engine / "verify.json").write_text(json.dumps(asdict(accuracy), indent=1) + "\n")
