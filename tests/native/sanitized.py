"""Compiles the native sources, and tests of them, with sanitizers. Each object once for the same source, headers and flags."""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parents[1]
NATIVE = REPOSITORY / "runtime/native"
BUILD = REPOSITORY / "build/native-tests"
CORE = (
    "block_pool candidates detokenizer drafts draws kv_cache penalties radix_cache row_scan sampler sampling_params scheduler"
    " scheduler_admission scheduler_commit scheduler_step step_batch"
).split()
OF_GPU = "cublaslt_library cuda_driver emulated_cublaslt emulated_cuda gpu gpu_executor matmuls".split()
ENGINE = [*CORE, "engine", "executor", "host_executor", "library", "metrics", "team", *OF_GPU]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all".split()
FLAGS = "-std=c++20 -O1 -g1 -Wall -Wextra -Werror -D_GLIBCXX_ASSERTIONS".split() + SANITIZERS
INCLUDES = ["-I", str(NATIVE), "-I", str(REPOSITORY / "plugins/include")]


def native(names: list[str]) -> list[pathlib.Path]:
    """The runtime's sources by name."""
    return [NATIVE / f"{name}.cpp" for name in names]


def headers() -> bytes:
    paths = [*NATIVE.glob("*.hpp"), *HERE.glob("*.hpp"), *(REPOSITORY / "plugins/include").rglob("*.hpp")]
    return b"".join(path.read_bytes() for path in sorted(paths))


def executable(name: str, sources: list[pathlib.Path]) -> pathlib.Path:
    """`name` under BUILD, linked of the sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(_object, sources))
    _run([*SANITIZERS, *objects, "-ldl", "-pthread", "-o", BUILD / name])
    return BUILD / name


def library(source: pathlib.Path) -> pathlib.Path:
    """A shared object of one source."""
    BUILD.mkdir(parents=True, exist_ok=True)
    _run([*FLAGS, "-fPIC", "-shared", *INCLUDES, source, "-o", BUILD / f"{source.stem}.so"])
    return BUILD / f"{source.stem}.so"


def _object(source: pathlib.Path) -> pathlib.Path:
    digest = hashlib.sha256(" ".join([COMPILER, *FLAGS]).encode() + headers() + source.read_bytes()).hexdigest()[:16]
    compiled = BUILD / f"{source.stem}-{digest}.o"
    if not compiled.exists():
        for old in BUILD.glob(f"{source.stem}-*.o"):
            old.unlink()
        _run([*FLAGS, *INCLUDES, "-c", source, "-o", compiled.with_suffix(".unfinished")])
        compiled.with_suffix(".unfinished").rename(compiled)
    return compiled


def _run(words: list) -> None:
    subprocess.run([COMPILER, *map(str, words)], check=True)
