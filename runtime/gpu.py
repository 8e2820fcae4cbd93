"""The GPU of this machine, and whether it, or its emulation on the CPU, runs an engine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pathlib

from slipway.runtime.errors import EngineError, MachineError
from slipway.runtime.manifest import GPU_KINDS, Target

VARIABLE = "SLIPWAY_DEVICE"
CUBLASLT = "libcublasLt.so.13"
COPY_BYTES, COPIES = 1 << 30, 5  # many times what an L2 holds


def emulation(target: Target, asked: bool | None) -> int | None:
    """The seed of the emulation, None to run without one. asked: None leaves it to SLIPWAY_DEVICE, which speaks of GPU engines alone."""
    text = os.environ.get(VARIABLE, "")
    kind, _, seed = text.partition(":")
    if text and (kind != "emulated" or (":" in text and not seed.isdigit())):
        raise EngineError(f"environment: {VARIABLE}", repr(text), "emulated, or emulated:SEED to shuffle threads")
    if asked and not target.is_gpu:
        raise EngineError("emulation", f"the engine is built for {target.kind}", "an engine for a GPU", "leave --emulate out")
    if not target.is_gpu or asked is False or not (asked or text):
        return None
    return int(seed or 0)


def check(target: Target, where: str) -> None:
    """Raises MachineError if there is no GPU here that runs the target's kernels."""
    name, capability, _ = _first_gpu(where, target.kind)
    if not runs_on(target.kind, capability):
        fitting = [kind for kind in GPU_KINDS if runs_on(kind, capability)]
        hint = f"build it again with target: {fitting[-1]}" if fitting else "no target fits it; --emulate runs the engine on the CPU, slowly"
        raise MachineError(where, f"built for {target.kind}; {name} is sm{capability}", hint=hint)


def load_cublaslt(where: str) -> None:
    """Raises MachineError without cuBLASLt: of the system, or of the nvidia-cublas package, which the native side would not find."""
    places = [None, *(str(path / "lib" / CUBLASLT) for folder in _nvidia_folders() for path in sorted(folder.glob("cu*")))]
    failures = []
    for place in places:
        try:
            ctypes.CDLL(place or CUBLASLT)
            return
        except OSError as error:
            failures.append(str(error))
    raise MachineError(where, f"no cuBLASLt ({failures[-1]})", "it, for linears of many rows", "pip install nvidia-cublas, or build with gpu.cublas: never")


def _nvidia_folders() -> list[pathlib.Path]:
    spec = importlib.util.find_spec("nvidia")
    return [pathlib.Path(path) for path in spec.submodule_search_locations or ()] if spec else []


def is_here(kind: str) -> bool:
    """Whether the first GPU of this machine runs engines of the kind."""
    try:
        return runs_on(kind, _first_gpu(kind, kind)[1])
    except MachineError:
        return False


def runs_on(kind: str, capability: int) -> bool:
    """Code for a GPU runs on later ones of its generation."""
    built = int(kind.removeprefix("sm"))
    return capability // 10 == built // 10 and capability >= built


def available_bytes() -> int:
    """Free memory of the GPU."""
    return _first_gpu("memory", "a GPU")[2]


def copy_bytes_per_s(emulated: int | None = None, size: int | None = None) -> float:
    """What the GPU's memory gives to a copy within it, bytes read and bytes written. emulated: a seed, of an emulated one. size: of a
    gigabyte, or half of what is free.
    """
    from slipway.runtime import _native

    size = size or min(COPY_BYTES, available_bytes() // 2 // 4096 * 4096)
    bench = _native.KernelBench(emulated, 1)
    memory = bench.allocate(size)
    bench.fill(memory, 0, size)
    return size / bench.copy(memory, size, COPIES)


def _first_gpu(where: str, wanted: str) -> tuple[str, int, int]:
    """Name, compute capability as in sm90, free bytes."""
    from slipway.runtime import _native

    try:
        return _native.first_gpu()
    except RuntimeError as error:
        raise MachineError(where, f"built for {wanted}: {error}", hint="--emulate, or SLIPWAY_DEVICE=emulated, runs it on the CPU, slowly") from None
