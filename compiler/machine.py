"""This machine  ->  what it is, and its limits: bytes read from memory and operations a second."""

from __future__ import annotations

import ctypes
import pathlib
import subprocess
from dataclasses import dataclass

from slipway.compiler import env
from slipway.compiler.cache import StageCache, digest
from slipway.compiler.errors import UserError
from slipway.compiler.target import CPU_ISAS
from slipway.compiler.toolchain import compiler_version
from slipway.runtime.machine import cpu_flags, usable_cores

PROBE = pathlib.Path(__file__).with_name("machine_probe.cpp")
READ_BYTES = 1 << 27  # a thread: more than a core's share of the caches
READ_S, MULTIPLY_S = 0.3, 0.1


@dataclass(frozen=True)
class MachineLimits:
    """What `threads` threads sustain for READ_S and MULTIPLY_S; multiplications and additions count one each."""

    threads: int
    read_bytes_per_s: float
    flops_per_s: float

    def seconds(self, bytes_moved: float, flops: float) -> float:
        """What this work takes at both limits, none of the bytes being in the caches. Integers may be multiplied faster."""
        return max(bytes_moved / self.read_bytes_per_s, flops / self.flops_per_s)


def processor() -> str:
    """The processor's name, as Linux gives it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def host_isas() -> list[str]:
    """Those of CPU_ISAS that this machine has, weakest first."""
    return [isa for isa, (flags, _) in CPU_ISAS.items() if cpu_flags().issuperset(flags)]


def host_isa() -> str | None:
    """The strongest of them, or None."""
    return (host_isas() or [None])[-1]


def missing_flags(isa: str = next(iter(CPU_ISAS))) -> list[str]:
    """What this machine lacks of an ISA, by default the weakest."""
    return sorted(set(CPU_ISAS[isa][0]) - cpu_flags())


def measure_limits(threads: int | None = None) -> MachineLimits:
    """Takes about half a second, and a second more the first time. Raises UserError where there is no compiler, or too little for the threads."""
    library = ctypes.CDLL(str(_library()))
    library.slipway_read_bandwidth.restype = library.slipway_multiply_rate.restype = ctypes.c_double
    threads = threads or usable_cores()
    bandwidth = library.slipway_read_bandwidth(threads, ctypes.c_int64(READ_BYTES), ctypes.c_double(READ_S))
    flops = library.slipway_multiply_rate(threads, ctypes.c_double(MULTIPLY_S))
    if not (bandwidth and flops):
        raise UserError("threads", f"{threads} with {READ_BYTES >> 20} MiB each cannot be had here", "fewer, or higher limits on processes and memory")
    return MachineLimits(threads, bandwidth, flops)


def _library() -> pathlib.Path:
    compiler, isa = compiler_version(), host_isa()
    if isa is None:
        raise UserError("processor", processor(), f"one with {', '.join(CPU_ISAS['avx2'][0])}")
    flags = ("-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", *CPU_ISAS[isa][1])
    parts = {"source": digest(PROBE.read_bytes()), "flags": " ".join(flags), "compiler": compiler}
    command = [*env.cxx(), *flags, str(PROBE), "-o"]
    cache = StageCache(env.cache_dir(), "machine")
    return cache.fetch("machine", isa, parts, lambda out: subprocess.run([*command, str(out)], check=True))
