"""Times paged attention against the machine's own limits: `python tests/benchmarks/bench_attention.py [threads [isa ...]]`.

Decode is compared with reading the same bytes once, in the same run; prefill with its arithmetic. Best of several.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "plugins"))

from kernel_harness import HOST_TARGETS, compile_kernel  # noqa: E402
from nodes import BF16  # noqa: E402
from paged import Sequences, Shape, new_blocks  # noqa: E402

from slipway.compiler.target import Target  # noqa: E402
from slipway.plugins.paged_attention.on_host import CACHES  # noqa: E402

LAYER = Shape(num_heads=16, num_kv_heads=8, head_dim=128, rotary_dim=128, norm=True)  # Qwen3-0.6B
COPIES = 8  # of the KV blocks, so that none is in a cache when it is read again


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    for target in [t for t in HOST_TARGETS[::-1] if t.isa in (sys.argv[2:] or t.isa)]:
        for kv in CACHES:
            print(f"{target}, {threads} threads, {kv.name} cache")
            layer = dataclasses.replace(LAYER, kv=kv)
            for sequences, length in ((32, 192), (32, 1024), (8, 1024), (1, 1024), (1, 8192)):
                decode(layer, target, threads, sequences, length)
            for new, length in ((1024, 1024), (256, 1024), (512, 4096), (32, 544)):
                prefill(layer, target, threads, new, length)


def decode(layer: Shape, target: Target, threads: int, count: int, length: int) -> None:
    """One token for each of `count` sequences of `length`."""
    step = Sequences(layer, [length] * count).step([(s, length - 1, length) for s in range(count)])
    kernel = step.lower(target, BF16)
    kv = [new_blocks(step.sequences, kernel) for _ in range(COPIES)]
    rival = [new_blocks(step.sequences, kernel) for _ in range(COPIES)]
    lib, size = compile_kernel(kernel.source, target), count * length * kernel.cost.kv_bytes
    ours, reads = [], []
    for blocks, bytes_read in list(zip(kv, rival)) * 3:
        ours += step.run(kernel, lib, blocks, threads).seconds
        reads.append(lib.driver_read(bytes_read.ctypes.data, size, threads))
    took, read = min(ours), min(reads)
    rates = f"{size / took / 1e9:6.1f} GB/s; reading {size / read / 1e9:6.1f} GB/s: {read / took:4.0%}"
    print(f"  decode {count:3} x {length:5}: {took * 1e6:8.0f} us {rates}")


def prefill(layer: Shape, target: Target, threads: int, new: int, length: int) -> None:
    """The last `new` tokens of one sequence of `length`."""
    step = Sequences(layer, [length]).step([(0, length - new, length)])
    kernel = step.lower(target, BF16)
    lib = compile_kernel(kernel.source, target)
    took = min(step.run(kernel, lib, new_blocks(step.sequences, kernel), threads, rounds=7).seconds)
    flops = kernel.cost.kv_flops * new * (length - (new - 1) / 2)
    print(f"  prefill {new:4} of {length:4}: {took * 1e3:6.2f} ms {flops / took / 1e12:6.2f} TFLOP/s")


if __name__ == "__main__":
    main()
