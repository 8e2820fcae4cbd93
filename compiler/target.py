"""What an engine is built for: a kind of processor and, on a CPU, its instruction set."""

from __future__ import annotations

import functools
import pathlib
from dataclasses import dataclass

CPU_ISAS = {  # weakest first: the /proc/cpuinfo flags a host must have, and the compiler flags that use them
    "avx2": (("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c")),
    "avx512": (
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
        ("-march=cascadelake",),
    ),
    "amx": (
        ("avx512_bf16", "avx512_vnni", "avx512vl", "amx_tile", "amx_bf16", "amx_int8"),
        ("-march=sapphirerapids", "-mno-avx512fp16"),
    ),
}


@dataclass(frozen=True)
class Target:
    """kind: "cpu" (later sm80 ...). isa: one of CPU_ISAS."""

    kind: str
    isa: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.isa}"

    @property
    def has_avx512(self) -> bool:
        return self.isa in ("avx512", "amx")


@functools.cache
def host_flags() -> frozenset[str]:
    """CPU feature flags of this machine, as Linux names them."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def host_isa() -> str | None:
    """The strongest ISA of CPU_ISAS this machine has, or None."""
    fitting = [isa for isa, (flags, _) in CPU_ISAS.items() if host_flags().issuperset(flags)]
    return fitting[-1] if fitting else None
