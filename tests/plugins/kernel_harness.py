"""Compiles the source of a plugin's kernel and calls it on tensors, as the runtime would.

All memory that a kernel is given ends where a page begins that nobody may touch: one that reads or writes on crashes, also
by masked loads and tile loads, which AddressSanitizer does not see. Kernels for AMX run on processors without it too, where those
have AVX-512 with BF16: tile intrinsics are then functions (emulated_amx.hpp).
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import mmap
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

import numpy as np
import torch

import slipway.plugins.plugin as plugin_module
from slipway.compiler import env
from slipway.compiler.kernels import COMMON_FLAGS
from slipway.compiler.machine import host_isas
from slipway.compiler.target import CPU_ISAS, Target

PLUGINS = pathlib.Path(plugin_module.__file__).parent
DRIVER = pathlib.Path(__file__).with_name("kernel_driver.cpp")
CACHE = pathlib.Path(tempfile.gettempdir()) / f"slipway-test-kernels-{os.getuid()}"
EMULATED_AMX = DRIVER.with_name("emulated_amx.hpp")
HOST_TARGETS = [Target("cpu", isa) for isa in host_isas()]
AMX = Target("cpu", "amx")
IS_EMULATED = AMX not in HOST_TARGETS and "avx512_bf16" in host_isas()
RUNNABLE_TARGETS = HOST_TARGETS + [AMX] * IS_EMULATED
POISON = 0xFF  # as bf16 and f32: NaN
PAGE, LINE = mmap.PAGESIZE, 64
LIBC = ctypes.CDLL(None, use_errno=True)
NO_ACCESS = 0

Array = torch.Tensor | np.ndarray


class Batch(ctypes.Structure):
    """slipway::Batch."""

    _fields_ = [(n, ctypes.c_int32) for n in ("num_tokens", "num_seqs", "num_logit_rows", "max_blocks")] + [
        (n, ctypes.c_void_p)
        for n in ("token_ids", "positions", "cu_seqlens", "kv_lens", "block_table", "logit_rows", "draws", "edits", "drawn")
    ] + [("drawn_row_bytes", ctypes.c_int64)]


class Operand(ctypes.Structure):
    """slipway::Operand."""

    _fields_ = [("data", ctypes.c_void_p), ("row_bytes", ctypes.c_int64)]


class Call(ctypes.Structure):
    """slipway::Call."""

    _fields_ = [
        ("batch", ctypes.POINTER(Batch)),
        *((n, ctypes.c_int32) for n in ("rows", "rank", "size")),
        *((n, ctypes.c_void_p) for n in ("barrier", "tickets")),
        *((n, ctypes.POINTER(Operand)) for n in ("inputs", "outputs")),
        *((n, ctypes.c_void_p) for n in ("weights", "kv", "shared", "local")),
    ]


def compile_kernel(source: str, target: Target) -> ctypes.CDLL:
    """A shared object of `source` and the driver; each compiled once for the same source, headers, flags and compiler."""
    emulated = target == AMX and IS_EMULATED
    isa_flags = [*CPU_ISAS["avx512_bf16"][1], "-include", str(EMULATED_AMX)] if emulated else CPU_ISAS[target.isa][1]
    flags = [*COMMON_FLAGS, "-pthread", *isa_flags, "-I", str(PLUGINS / "include"), "-I", str(PLUGINS)]
    driver = _compiled(DRIVER.read_text(), [*flags, "-c"], "o")
    lib = ctypes.CDLL(str(_compiled(source, [*flags, "-shared", str(driver)], "so")))
    lib.driver_read.restype = ctypes.c_double
    lib.driver_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    return lib


def _compiled(source: str, flags: list[str], suffix: str) -> pathlib.Path:
    headers = sorted(itertools.chain(PLUGINS.rglob("*.hpp"), [DRIVER, EMULATED_AMX]))
    digest = hashlib.sha256("\0".join([*env.cxx(), *flags, source, *(h.read_text() for h in headers)]).encode())
    compiled = CACHE / f"{digest.hexdigest()[:24]}.{suffix}"
    if not compiled.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            unit, out = pathlib.Path(folder, "source.cpp"), f"{folder}/compiled"
            unit.write_text(source)
            made = subprocess.run([*env.cxx(), str(unit), *flags, "-o", out], capture_output=True, text=True)
            assert made.returncode == 0, made.stderr
            os.replace(out, compiled)
    return compiled


def guarded(size: int, fill: int = POISON, alignment: int = LINE) -> np.ndarray:
    """`size` bytes at an `alignment` boundary; what that boundary lets be behind them is less than one `alignment` and a guard page."""
    room = -(-size // PAGE) * PAGE
    mapped = mmap.mmap(-1, room + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)  # as numpy has it for large arrays
    pages = np.frombuffer(mapped, np.uint8)
    if LIBC.mprotect(ctypes.c_void_p(pages.ctypes.data + room), ctypes.c_size_t(PAGE), NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    found = pages[room - -(-size // alignment) * alignment :][:size]
    found[:] = fill
    return found


def make_batch(**arrays: Sequence | np.ndarray) -> Batch:
    """A Batch of int32 arrays, or bytes of structs, by field name; counts follow from cu_seqlens, block_table and logit_rows."""
    batch = Batch()
    kept = {name: _guarded_indices(values) for name, values in arrays.items()}
    for name, values in kept.items():
        setattr(batch, name, values.ctypes.data)
    batch.kept_alive = kept
    if "cu_seqlens" in kept:
        batch.num_tokens, batch.num_seqs = int(kept["cu_seqlens"][-1]), len(kept["cu_seqlens"]) - 1
    if "block_table" in kept:
        batch.max_blocks = kept["block_table"].shape[1]
    if "logit_rows" in kept:
        batch.num_logit_rows = len(kept["logit_rows"])
    return batch


def _guarded_indices(values: Sequence | np.ndarray) -> np.ndarray:
    """A copy that ends at a page nobody may touch; bytes are those of structs."""
    values = values if isinstance(values, np.ndarray) and values.dtype == np.uint8 else np.asarray(values, np.int32)
    copy = guarded(values.nbytes, alignment=values.itemsize).view(values.dtype).reshape(values.shape)
    copy[:] = values
    return copy


def run_kernel(
    lib: ctypes.CDLL,
    symbol: str,
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    weights: Sequence[Array] | Sequence[Sequence[Array]] = (),
    batch: Batch | None = None,
    threads: int = 2,
    *,
    rows: int | None = None,
    kv: Array | None = None,
    shared_scratch: int = 0,
    local_scratch: int = 0,
) -> list[float]:
    """Calls the kernel, which writes `outputs` in place. Matrices may be strided in rows, never in columns.

    rows: default the rows of outputs[0]. weights: bytes as the plugin packed them, or a list of such lists: then one
    call for each, and the result is the seconds of each call. Scratch is as large as stated and holds NaN. Operands and
    weights are copied in front of guard pages; aligned weights of several rounds, which are for measuring, stay where they are.
    """
    rows = len(outputs[0]) if rows is None else rows
    rounds = [list(w) for w in weights] if weights and isinstance(weights[0], (list, tuple)) else [list(weights)]
    in_place = len(rounds) > 1
    rounds = [[w if in_place and _address(w) % LINE == 0 else _guarded_bytes(w) for w in one] for one in rounds]
    guarded_inputs, guarded_outputs = [*map(GuardedMatrix, inputs)], [*map(GuardedMatrix, outputs)]
    shared, *locals_ = guarded(shared_scratch), *(guarded(local_scratch) for _ in range(threads))
    weight_table = _pointers([w for one in rounds for w in one])
    call = Call(
        batch=ctypes.pointer(batch or Batch(num_tokens=rows, num_logit_rows=rows)),
        rows=rows,
        inputs=_operands(guarded_inputs),
        outputs=_operands(guarded_outputs),
        kv=None if kv is None else _address(kv),
        shared=shared.ctypes.data,
    )
    seconds = (ctypes.c_double * len(rounds))()
    failed = lib.driver_run(
        getattr(lib, symbol),
        ctypes.byref(call),
        threads,
        _pointers(locals_),
        len(rounds),
        weight_table,
        len(rounds[0]),
        seconds,
    )
    assert not failed, "the system denies AMX"
    for output in guarded_outputs:
        output.copy_back()
    return list(seconds)


class GuardedMatrix:
    """A copy of a matrix, strided as it is, whose last row ends at a guard page."""

    def __init__(self, array: Array):
        is_torch = isinstance(array, torch.Tensor)
        itemsize = array.element_size() if is_torch else array.itemsize
        row_bytes = (array.stride(0) if is_torch else array.strides[0] // itemsize) * itemsize
        self.original = array
        self.bytes = (len(array) - 1) * row_bytes + int(np.prod(array.shape[1:])) * itemsize
        self.copy = guarded(self.bytes, alignment=itemsize)
        self.operand = Operand(_address(self.copy), row_bytes)
        ctypes.memmove(_address(self.copy), _address(array), self.bytes)

    def copy_back(self) -> None:
        """What lies between the rows too: a kernel that wrote there is found out."""
        ctypes.memmove(_address(self.original), _address(self.copy), self.bytes)


def _guarded_bytes(weight: Array) -> np.ndarray:
    copy = guarded(weight.nbytes)
    ctypes.memmove(_address(copy), _address(weight), weight.nbytes)
    return copy


def _address(array: Array) -> int:
    return array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data


def _operands(matrices: Sequence[GuardedMatrix]) -> ctypes.Array:
    return (Operand * max(1, len(matrices)))(*(matrix.operand for matrix in matrices))


def _pointers(arrays: Sequence[Array]) -> ctypes.Array:
    return (ctypes.c_void_p * max(1, len(arrays)))(*map(_address, arrays))
