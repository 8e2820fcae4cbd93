"""CUDA sources of a plan's kernels  ->  cubins, by NVRTC: no GPU and no CUDA toolkit is needed."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from slipway.compiler.cache import StageCache, digest
from slipway.compiler.errors import InternalError, UserError
from slipway.compiler.kernels import PLUGINS, headers_digest, unique_sources
from slipway.compiler.target import Gpu
from slipway.plugins.plugin import Kernel

OPTIONS = ("--std=c++20", "--device-as-default-execution-space", "--ptxas-options=-v", f"-I{PLUGINS / 'include'}", f"-I{PLUGINS}")
STABLE_OPTIONS = " ".join(OPTIONS[:3])  # without paths
RESOURCES = re.compile(r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S)
SERIALIZED = re.compile(r"wgmma\.mma_async instructions are serialized due to [^']*'(\w+)'")


@dataclass(frozen=True)
class Resources:
    """Of one function, as ptxas tells them. spilled_bytes: stored to local memory and loaded from it, a thread. serialized: products of
    warpgroups that were to overlap do not.
    """

    registers: int
    spilled_bytes: int
    serialized: bool


@dataclass(frozen=True)
class Cubin:
    image: bytes
    functions: dict[str, Resources]


def compile_cubins(kernels: list[Kernel], gpu: Gpu, cache: StageCache, jobs: int, done: Callable[[int], None]) -> dict[str, pathlib.Path]:
    """The cubin of each kernel, by symbol. done(1): one is there."""

    def compile_one(item: tuple[str, str]) -> pathlib.Path:
        symbol, source = item
        path = cache.fetch("cubins", f"{symbol} {gpu.arch}", cubin_parts(source, gpu), lambda out: out.write_bytes(compile_cubin(source, gpu).image))
        done(1)
        return path

    sources = unique_sources(kernels)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(sources, pool.map(compile_one, sources.items())))


def cubin_parts(source: str, gpu: Gpu) -> dict[str, str]:
    """What a cubin depends on."""
    return {"source": digest(source), "headers": headers_digest(True), "options": STABLE_OPTIONS, "arch": gpu.arch, "compiler": nvrtc_version()}


def nvrtc_version() -> str:
    _, major, minor = _nvrtc().nvrtcVersion()
    return f"NVRTC {major}.{minor}"


def compile_cubin(source: str, gpu: Gpu) -> Cubin:
    nvrtc = _nvrtc()
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        options = [option.encode() for option in (f"--gpu-architecture={gpu.arch}", *OPTIONS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode(errors="replace")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise InternalError(f"the CUDA compiler failed for {gpu.arch}:\n{log[-4000:]}")
        image = _read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    serialized = SERIALIZED.findall(log)
    functions = {name: Resources(int(registers), int(stored) + int(loaded), name in serialized) for name, stored, loaded, registers in RESOURCES.findall(log)}
    return Cubin(image, functions)


def _read(program, size_of: Callable, read: Callable) -> bytes:
    size = _checked(size_of(program))
    buffer = bytes(bytearray(size + 2))  # an object of its own, for NVRTC writes into it: short ones are shared
    _checked(read(program, buffer))
    return buffer[:size]


def _checked(results: tuple):
    """What a call of NVRTC gives besides its result, which must be success."""
    if results[0] != type(results[0]).NVRTC_SUCCESS:
        raise InternalError(f"NVRTC: {results[0].name}")
    return results[1] if len(results) > 1 else None


def _nvrtc():
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise UserError("NVRTC", f"cannot be loaded ({error})", "the CUDA compiler, to build for a GPU", "pip install 'slipway[cuda]'") from error
    return nvrtc
