"""`slipway doctor`: what this machine can build and run."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import asdict, dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import click

from slipway.compiler.cli.options import json_option
from slipway.compiler.cli.tables import facts, print_json
from slipway.compiler.errors import UserError
from slipway.compiler.quantities import bytes_text, rate_text
from slipway.compiler.target import GPUS

EPILOG = """\b
Exit codes: 0 if engines can be built and run here, 2 if not.

\b
Examples:
  slipway doctor
  slipway doctor --measure     also reads memory and multiplies, for a second
"""


@dataclass(frozen=True)
class Finding:
    """ok: False where something needed is missing; None where what is missing is optional."""

    name: str
    ok: bool | None
    text: str
    hint: str | None = None


@click.command(epilog=EPILOG)
@click.option("--measure", is_flag=True, help="Measure memory bandwidth and multiplication rate.")
@json_option
@click.pass_context
def doctor(context: click.Context, measure: bool, as_json: bool) -> None:
    """Say what this machine can build and run, and what is missing."""
    findings = examine(measure)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        click.echo(facts([(f"{MARKS[f.ok]} {f.name}", f.text + (f"; {f.hint}" if f.hint else "")) for f in findings]))
    if any(finding.ok is False for finding in findings):
        context.exit(2)


MARKS = {True: "ok  ", False: "miss", None: "-   "}


def examine(measure: bool) -> list[Finding]:
    findings = [python(), cxx(), torch(), processor(), memory(), cache(), runtime(), triton(), nvrtc(), gpu(), cublaslt()]
    return [*findings, limits()] if measure else findings


def python() -> Finding:
    return Finding("Python", True, platform.python_version())


def cxx() -> Finding:
    from slipway.compiler.toolchain import compiler_version

    try:
        return Finding("C++ compiler", True, compiler_version())
    except UserError as error:
        return Finding("C++ compiler", False, f"{error.where}: {error.found}", error.hint)


def torch() -> Finding:
    """Found without importing it, which takes seconds."""
    missing = [name for name in ("torch", "transformers", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("build", False, f"no {', '.join(missing)}", "pip install slipway; without them engines run but are not built")
    return Finding("build", True, "torch, transformers and onnxruntime are installed")


def processor() -> Finding:
    from slipway.compiler import machine
    from slipway.runtime.machine import usable_cores

    name = machine.processor()
    if not (runnable := machine.host_isas()):
        return Finding("processor", False, f"{name} lacks {', '.join(machine.missing_flags())}", "no engine runs on it")
    return Finding("processor", True, f"{name}, {usable_cores()} cores; runs cpu engines for {', '.join(runnable)}")


def memory() -> Finding:
    from slipway.runtime.machine import available_bytes, total_bytes

    return Finding("memory", True, f"{bytes_text(available_bytes())} free of {bytes_text(total_bytes())}")


def cache() -> Finding:
    from slipway.compiler import env, eviction

    held = bytes_text(eviction.own_bytes(env.cache_dir()))
    return Finding("cache", True, f"{held} of at most {bytes_text(env.cache_bytes())} in {env.cache_dir()}")


def runtime() -> Finding:
    folders = importlib.util.find_spec("slipway.runtime").submodule_search_locations
    if not [file for folder in folders for suffix in EXTENSION_SUFFIXES for file in Path(folder).glob(f"*{suffix}")]:
        return Finding("runtime", False, "its native extension is not built", "pip install . in the source folder")
    return Finding("runtime", True, "its native extension is installed")


def triton() -> Finding:
    from slipway.runtime.errors import EngineError
    from slipway.runtime.triton import bundle

    try:
        installed = bundle.find()
    except EngineError as error:
        return Finding("Triton", None, str(error))
    return Finding("Triton", True, str(installed.server))


def nvrtc() -> Finding:
    from slipway.compiler.cubins import nvrtc_version

    try:
        return Finding("CUDA compiler", True, f"{nvrtc_version()}; builds engines for {', '.join(GPUS)}")
    except UserError as error:
        return Finding("CUDA compiler", None, error.found, error.hint)


def gpu() -> Finding:
    from slipway.runtime import _native

    try:
        name, capability, free = _native.first_gpu()
    except (ImportError, RuntimeError) as error:
        return Finding("GPU", None, f"{error}; engines for GPUs run by emulation (--emulate)")
    return Finding("GPU", True, f"{name}, sm{capability}, {bytes_text(free)} free; Slipway has not been run on a GPU yet: make gpu")


def cublaslt() -> Finding:
    from slipway.runtime.errors import MachineError
    from slipway.runtime.gpu import CUBLASLT, load_cublaslt

    try:
        load_cublaslt("cuBLASLt")
    except MachineError as error:
        return Finding("cuBLASLt", None, error.found, error.hint)
    return Finding("cuBLASLt", True, f"{CUBLASLT}; multiplies the linears of many rows on a GPU")


def limits() -> Finding:
    from slipway.compiler.machine import measure_limits

    measured = measure_limits()
    text = f"reads {rate_text(measured.read_bytes_per_s, 'B')}, multiplies {rate_text(measured.flops_per_s, 'FLOP')}"
    return Finding("limits", True, f"{text}, {measured.threads} threads")
