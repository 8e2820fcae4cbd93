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
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512vbmi", "avx512_bf16"),
        ("-march=cooperlake", "-mavx512vbmi"),
    ),
    "amx": (
        ("avx512_bf16", "avx512_vnni", "avx512vl", "avx512vbmi", "amx_tile", "amx_bf16", "amx_int8"),
        ("-march=sapphirerapids", "-mno-avx512fp16"),
    ),
}


ACTIVATION_FACTORS = {"bf16": "bf16", "fp8": "e4m3", "nvfp4": "e2m1"}  # what activations of a recipe are multiplied as


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA architecture. arch: as NVRTC names it. multiprocessors: of its data-centre or largest card.

    shared_bytes: of shared memory that one block may have. factors: what its tensor cores multiply by cuBLASLt.
    """

    arch: str
    multiprocessors: int
    shared_bytes: int
    factors: tuple[str, ...] = ("bf16",)


GPUS = {
    "sm80": Gpu("sm_80", 108, 166_912),
    "sm86": Gpu("sm_86", 84, 101_376),
    "sm89": Gpu("sm_89", 142, 101_376, ("bf16", "e4m3")),
    "sm90": Gpu("sm_90a", 132, 232_448, ("bf16", "e4m3")),
    "sm100": Gpu("sm_100", 148, 232_448, ("bf16", "e4m3", "e2m1")),
    "sm120": Gpu("sm_120", 188, 101_376, ("bf16", "e4m3", "e2m1")),
}


@dataclass(frozen=True)
class Target:
    """kind: "cpu", or one of GPUS. isa: one of CPU_ISAS for a CPU, None for a GPU.

    cublas: of a GPU, the rows from which on linears are cuBLASLt's; None: where that is expected to be faster; 0: never. most_rows: of a step;
    None: not known.
    """

    kind: str
    isa: str | None = None
    cublas: int | None = None
    most_rows: int | None = None

    @property
    def gpu(self) -> Gpu | None:
        return GPUS.get(self.kind)

    def __str__(self) -> str:
        return self.kind if self.isa is None else f"{self.kind}-{self.isa}"
