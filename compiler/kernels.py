"""Compiles the plan's kernels for a CPU, those of a GPU for its emulation there, and links them into one shared object."""

from __future__ import annotations

import functools
import pathlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from slipway.compiler import env
from slipway.compiler.cache import StageCache, digest
from slipway.compiler.errors import InternalError
from slipway.compiler.target import CPU_ISAS, Target
from slipway.compiler.toolchain import compiler_version
from slipway.plugins.plugin import Kernel

PLUGINS = pathlib.Path(__file__).resolve().parent.parent / "plugins"
# without contraction: a product and a sum that become one where a kernel runs one row, and not where it runs many, would be other bits
COMMON_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi")


EMULATION_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-mtls-dialect=gnu2", "-mavx2", "-mfma", "-fno-math-errno", "-fvisibility=hidden",
                   "-Wno-unknown-pragmas")
EMULATION_CPU_FLAGS = ("avx2", "fma")  # what they take for granted
GPU_HEADERS = ("cuda", "emulation")  # folders of plugins/include/slipway


@functools.cache
def headers_digest(gpu: bool) -> str:
    """One hash of every C++ or CUDA header a kernel may include."""
    if gpu:
        paths = [path for suffix in ("cuh", "hpp") for path in PLUGINS.rglob(f"*.{suffix}")]
    else:
        paths = [path for path in PLUGINS.rglob("*.hpp") if path.parent.name not in GPU_HEADERS]
    return digest("".join(path.read_text() for path in sorted(paths)))


def compile_library(kernels: list[Kernel], target: Target, cache: StageCache, jobs: int, done: Callable[[int], None]) -> pathlib.Path:
    """One shared object that exports every kernel's symbol. Equal symbols must have equal sources. done(1): a kernel is there."""

    def compile_one(item: tuple[str, str]) -> pathlib.Path:
        compiled = cache.fetch("objects", item[0], object_parts(item[1], target), lambda out: _compile(*item, target, out))
        done(1)
        return compiled

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sorted(unique_sources(kernels).items())))
    link = lambda out: _run([*env.cxx(), "-shared", "-o", out, *objects])  # noqa: E731
    return cache.fetch("kernels", f"library {target}", library_parts(kernels, target), link)


def library_parts(kernels: list[Kernel], target: Target) -> dict[str, str]:
    """What the shared object depends on."""
    objects = [digest(str(sorted(object_parts(source, target).items()))) for _, source in sorted(unique_sources(kernels).items())]
    return {"kernels": digest("".join(objects)), "compiler": compiler_version()}


def object_parts(source: str, target: Target) -> dict[str, str]:
    return {"source": digest(source), "headers": headers_digest(target.gpu is not None), "flags": " ".join(_flags(target)), "compiler": compiler_version()}


def _flags(target: Target) -> tuple[str, ...]:
    return EMULATION_FLAGS if target.gpu else (*COMMON_FLAGS, *CPU_ISAS[target.isa][1])


def unique_sources(kernels: list[Kernel]) -> dict[str, str]:
    """By symbol."""
    sources: dict[str, str] = {}
    for kernel in kernels:
        if sources.setdefault(kernel.symbol, kernel.source) != kernel.source:
            raise InternalError(f"two different sources for the kernel {kernel.symbol}")
    return sources


def _compile(symbol: str, source: str, target: Target, out: pathlib.Path) -> None:
    text = out.with_name(f"{symbol[:100]}.cpp")
    text.write_text(source)
    _run([*env.cxx(), *_flags(target), f"-I{PLUGINS / 'include'}", f"-I{PLUGINS}", "-c", text, "-o", out])


def _run(command: list) -> None:
    words = [str(word) for word in command]
    if env.debug() >= 5:
        print(" ".join(words), flush=True)
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise InternalError(f"the C++ compiler failed: {' '.join(words)}\n{done.stderr[-4000:]}")
