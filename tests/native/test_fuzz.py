"""The scheduling core under random schedules, built with AddressSanitizer and UBSan. SECONDS of it; more by hand."""

import concurrent.futures
import hashlib
import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parents[1]
NATIVE = REPOSITORY / "runtime/native"
CORE = (
    "block_pool candidates detokenizer drafts kv_cache penalties radix_cache row_scan sampler sampling_params scheduler"
    " scheduler_admission scheduler_commit scheduler_step step_batch"
).split()
FLAGS = "-std=c++20 -O1 -g1 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS".split()
SECONDS = 10


def compile_fuzz(folder: pathlib.Path) -> pathlib.Path:
    """The executable; compiled again only when a source has changed."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "c++"
    sources = [HERE / "fuzz_scheduler.cpp", *(NATIVE / f"{name}.cpp" for name in CORE)]
    digest = hashlib.sha256(" ".join([compiler, *FLAGS]).encode())
    for path in [*sources, *sorted(NATIVE.glob("*.hpp"))]:
        digest.update(path.read_bytes())
    executable = folder / f"fuzz_scheduler-{digest.hexdigest()[:16]}"
    if executable.exists():
        return executable
    folder.mkdir(parents=True, exist_ok=True)
    objects = [folder / f"{source.stem}.o" for source in sources]
    includes = ["-I", str(NATIVE), "-I", str(REPOSITORY / "plugins/include")]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        commands = [[compiler, *FLAGS, *includes, "-c", str(source), "-o", str(result)] for source, result in zip(sources, objects, strict=True)]
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    for old in folder.glob("fuzz_scheduler-*"):
        old.unlink()
    unfinished = executable.with_suffix(".unfinished")
    subprocess.run([compiler, *FLAGS, *map(str, objects), "-o", str(unfinished)], check=True)
    unfinished.rename(executable)
    return executable


@pytest.fixture(scope="module")
def fuzz() -> pathlib.Path:
    return compile_fuzz(REPOSITORY / "build/native-tests")


def test_random_schedules(fuzz):
    result = subprocess.run([fuzz, str(SECONDS)], capture_output=True, text=True, timeout=20 * SECONDS)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
