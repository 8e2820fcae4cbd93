"""Compiles the CUDA source of a plugin's kernel for the emulation of a GPU and launches it on tensors, as the runtime would.

All memory that a kernel is given ends where a page begins that nobody may touch, and holds NaN where nothing was put. Under
pytest --gpu the same kernels are compiled for the GPU that is here, and run on it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from kernel_bench import MAX_INPUTS, MAX_OUTPUTS, MAX_WEIGHTS, Bench, Call, compile_images, launches_for, target_here
from kernel_harness import CACHE, PLUGINS, Array, Batch, GuardedMatrix, Operand, _guarded_bytes, guarded

from slipway.compiler import env
from slipway.compiler.kernels import EMULATION_FLAGS
from slipway.compiler.target import GPUS, Target
from slipway.plugins.plugin import Kernel, Launch

GPU_TARGETS = [Target(kind) for kind in GPUS]
ON_GPU = bool(os.environ.get("SLIPWAY_TESTS_ON_GPU"))  # set by tests/conftest.py
TARGET = target_here() if ON_GPU else Target("sm90")
SEEDS = (0, 1, 2, 3)
ERROR_BYTES = 256


class Extent(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint32) for axis in "xyz"]


class EmulatedLaunch(ctypes.Structure):
    """slipway::emulation::Launch."""

    _fields_ = [
        ("grid", Extent),
        ("block", Extent),
        ("shared_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("arguments", ctypes.c_void_p),
        ("next_block", ctypes.c_void_p),
        ("failed", ctypes.c_void_p),
        ("error", ctypes.c_void_p),
    ]


class LaunchError(Exception):
    """What the emulation found wrong with a kernel."""


def compile_emulated(kernels: Iterable[Kernel], *flags: str) -> ctypes.CDLL | dict[str, str]:
    """One library of several kernels; compiled once for the same sources, headers, flags and compiler. On a GPU: its images."""
    if ON_GPU:
        return compile_images(kernels, TARGET)
    source = "\n".join({kernel.symbol: kernel.source for kernel in kernels}.values())
    command = [*env.cxx(), *EMULATION_FLAGS, *flags, "-shared", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-I", str(PLUGINS / "include"), "-I", str(PLUGINS)]
    headers = sorted(p for suffix in ("hpp", "cuh") for p in PLUGINS.rglob(f"*.{suffix}"))
    digest = hashlib.sha256("\0".join([*command, source, *(h.read_text() for h in headers)]).encode())
    library = CACHE / f"{digest.hexdigest()[:24]}.so"
    if not library.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unit = pathlib.Path(folder, "kernels.cpp")
            unit.write_text(source)
            made = subprocess.run([*command, str(unit), "-o", f"{folder}/kernels.so"], capture_output=True, text=True)
            assert made.returncode == 0, made.stderr
            os.replace(f"{folder}/kernels.so", library)
    return ctypes.CDLL(str(library))


def run_emulated(
    library: ctypes.CDLL | dict[str, str],
    kernel: Kernel,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    weights: Sequence[Array] = (),
    batch: Batch | None = None,
    *,
    rows: int | None = None,
    captured_rows: int | None = None,
    captured_sequences: int | None = None,
    kv: np.ndarray | None = None,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Runs the launches that a graph for `captured_rows` and `captured_sequences` (default: as many as there are) has; writes `outputs`
    in place.

    rows: default the rows of outputs[0]. Raises LaunchError.
    """
    rows = len(outputs[0]) if rows is None else rows
    batch = batch or Batch(num_tokens=rows, num_logit_rows=rows, num_seqs=1)
    captured = max(rows, captured_rows or 0)
    held = [*map(GuardedMatrix, inputs)], [*map(GuardedMatrix, outputs)], [*map(_guarded_bytes, weights)]
    longest = _longest(batch)
    counts = {"rows": captured, "tokens": max(captured, batch.num_tokens), "sequences": max(1, batch.num_seqs, captured_sequences or 0)}
    if isinstance(library, dict):
        return run_on_bench(Bench(library), kernel, held, batch, counts, longest, kv)
    scratch = guarded(kernel.shared_scratch_at(captured), alignment=256)
    counters = guarded(4 * kernel.counters, 0, alignment=256)
    call = Call(
        batch=ctypes.addressof(batch),
        inputs=(Operand * MAX_INPUTS)(*(m.operand for m in held[0])),
        outputs=(Operand * MAX_OUTPUTS)(*(m.operand for m in held[1])),
        weights=(ctypes.c_void_p * MAX_WEIGHTS)(*(w.ctypes.data for w in held[2])),
        kv=None if kv is None else kv.ctypes.data,
        scratch=scratch.ctypes.data,
        counters=counters.ctypes.data,
    )
    for number, launch in enumerate(launches_for(kernel, counts, longest)):
        _launch(library, launch, [extent.at(counts) for extent in launch.grid], call, seed and seed + 1000 * number, threads)
    for output in held[1]:
        output.copy_back()
    assert not counters.any(), "counters are not left at zero"


def run_on_bench(bench: Bench, kernel: Kernel, held: tuple, batch: Batch, counts: dict[str, int], longest: int, kv: np.ndarray | None) -> None:
    """held: inputs, outputs and weights; outputs and kv are written back."""
    inputs, outputs, weights = held
    on_device = [[Operand(bench.put(m.copy), m.operand.row_bytes) for m in side] for side in (inputs, outputs)]
    blocks = None if kv is None else bench.put(kv)
    call = bench.call(kernel, bench.batch(batch), *on_device, [bench.put(w) for w in weights], counts["rows"], blocks)
    bench.launch(kernel, call, counts, longest)
    bench.native.synchronize()
    for matrix, operand in zip(outputs, on_device[1]):
        matrix.copy[:] = np.frombuffer(bench.native.read(operand.data, matrix.bytes), np.uint8)
        matrix.copy_back()
    if kv is not None:
        kv[:] = np.frombuffer(bench.native.read(blocks, kv.nbytes), np.uint8)
    counters = bench.native.read(call.counters, 4 * kernel.counters) if kernel.counters else b""
    assert not any(counters), "counters are not left at zero"


def _longest(batch: Batch) -> int:
    """Of the batch's sequences, in new tokens; of a batch without sequences: all tokens."""
    cu_seqlens = getattr(batch, "kept_alive", {}).get("cu_seqlens")
    return batch.num_tokens if cu_seqlens is None else int(np.diff(cu_seqlens).max())


def _launch(library: ctypes.CDLL, launch: Launch, grid: list[int], call: Call, seed: int, threads: int) -> None:
    if not all(grid):
        return
    next_block, failed, error = ctypes.c_uint64(), ctypes.c_bool(), ctypes.create_string_buffer(ERROR_BYTES)
    emulated = EmulatedLaunch(
        Extent(*grid), Extent(launch.threads, 1, 1), launch.shared_bytes, seed, ctypes.addressof(call), ctypes.addressof(next_block),
        ctypes.addressof(failed), ctypes.addressof(error),
    )  # fmt: skip
    function = getattr(library, launch.function)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: function(ctypes.byref(emulated)), range(threads)))
    if failed:
        raise LaunchError(f"{launch.function}: {error.value.decode()}")
