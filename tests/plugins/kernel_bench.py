"""Launches a plugin's CUDA kernel through the runtime's own driver table: on a GPU, or on an emulated one, with the same calls."""

from __future__ import annotations

import ctypes
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from kernel_harness import Batch, Operand

from slipway.compiler.cubins import compile_cubin
from slipway.compiler.target import GPUS, Target
from slipway.plugins.plugin import Kernel, Launch
from slipway.runtime import _native, gpu

MAX_INPUTS, MAX_OUTPUTS, MAX_WEIGHTS = 4, 2, 6
ARRAYS = ("token_ids", "positions", "cu_seqlens", "kv_lens", "block_table", "logit_rows", "draws", "edits", "drawn")


class Call(ctypes.Structure):
    """slipway::cuda::Call."""

    _fields_ = [
        ("batch", ctypes.c_void_p),
        ("inputs", Operand * MAX_INPUTS),
        ("outputs", Operand * MAX_OUTPUTS),
        ("weights", ctypes.c_void_p * MAX_WEIGHTS),
        ("kv", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("counters", ctypes.c_void_p),
        ("counts_logit_rows", ctypes.c_int32),
    ]


def target_here() -> Target:
    """That of the first GPU."""
    _, capability, _ = _native.first_gpu()
    return Target(max((kind for kind in GPUS if int(kind[2:]) <= capability and int(kind[2:]) // 10 == capability // 10), key=lambda kind: int(kind[2:])))


def compile_images(kernels: Iterable[Kernel], target: Target) -> dict[str, str]:
    """Path of the cubin with each function."""
    folder, images = pathlib.Path(tempfile.mkdtemp(prefix="slipway-cubins-")), {}
    for number, kernel in enumerate({kernel.symbol: kernel for kernel in kernels}.values()):
        path = folder / f"{number}.cubin"
        path.write_bytes(compile_cubin(kernel.source, target.gpu).image)
        images |= {launch.function: str(path) for launch in kernel.launches if not launch.matmul}
    return images


class Bench:
    """images: file with each function; of an emulated GPU (seed: emulated), a shared object."""

    def __init__(self, images: Mapping[str, str], emulated: int | None = None):
        self.native, self.is_emulated = _native.KernelBench(emulated, 2), emulated is not None
        self.images, self.functions = images, {}

    def put(self, data: np.ndarray) -> int:
        """The address of a copy."""
        flat = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        address = self.native.allocate(flat.size)
        if flat.size:
            self.native.write(address, flat)
        return address

    def filled(self, size: int, value: int = 0xFF) -> int:
        address = self.native.allocate(size)
        self.native.fill(address, value, max(1, size))
        return address

    def batch(self, batch: Batch) -> int:
        """The address of a copy of it and of its arrays."""
        copy = Batch.from_buffer_copy(batch)
        for name in ARRAYS:
            values = getattr(batch, "kept_alive", {}).get(name)
            setattr(copy, name, None if values is None else self.put(values))
        return self.put(np.frombuffer(bytes(copy), np.uint8))

    def call(self, kernel: Kernel, batch: int, inputs: Sequence[Operand], outputs: Sequence[Operand], weights: Sequence[int], rows: int,
             kv: int | None = None) -> Call:
        """Of device addresses; scratch holds NaN, counters zeros."""
        return Call(
            batch=batch,
            inputs=(Operand * MAX_INPUTS)(*inputs),
            outputs=(Operand * MAX_OUTPUTS)(*outputs),
            weights=(ctypes.c_void_p * MAX_WEIGHTS)(*weights),
            kv=kv,
            scratch=self.filled(kernel.shared_scratch_at(rows)),
            counters=self.filled(4 * kernel.counters, 0),
        )

    def launch(self, kernel: Kernel, call: Call, counts: Mapping[str, int], longest: int) -> None:
        """The launches of a graph for counts["rows"], into the stream or the capture under way."""
        for launch in launches_for(kernel, counts, longest):
            if launch.matmul:
                if not self.is_emulated:
                    gpu.load_cublaslt("a multiplication")
                self.native.matmul(launch.matmul, bytes(call), counts["rows"])
                continue
            grid = tuple(extent.at(counts) for extent in launch.grid)
            if all(grid):
                self.native.launch(self._function(launch), grid, launch.threads, launch.shared_bytes, bytes(call))

    def _function(self, launch: Launch) -> int:
        if launch.function not in self.functions:
            self.functions[launch.function] = self.native.function(self.images[launch.function], launch.function, launch.shared_bytes)
        return self.functions[launch.function]


def launches_for(kernel: Kernel, counts: Mapping[str, int], longest: int) -> list[Launch]:
    return [launch for launch in kernel.launches if launch.takes_part(counts["rows"], counts["sequences"], longest)]
