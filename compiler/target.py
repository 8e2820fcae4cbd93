"""What an engine is built for: a kind of processor and, on a CPU, its instruction set."""

from __future__ import annotations

from dataclasses import dataclass

CPU_ISAS = {  # weakest first: the /proc/cpuinfo flags a host must have, and the compiler flags that use them
    "avx2": (("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c")),
    "avx512": (
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"),
        ("-march=cascadelake",),
    ),
    "avx512_bf16": (
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"),
        ("-march=cooperlake",),
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
