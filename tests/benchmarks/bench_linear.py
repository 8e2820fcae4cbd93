"""Speed of the linear kernels on the shapes of Qwen3-0.6B, or of larger models, beside plain reading of memory in the same minute.

python tests/benchmarks/bench_linear.py --rows 1,32 --formats bf16,int4g128
"""

from __future__ import annotations

import pathlib
import statistics
import sys

import click
import numpy as np
import torch
from torch import Tensor

sys.path.append(str(pathlib.Path(__file__).parents[1] / "plugins"))

from kernel_harness import compile_kernel, guarded, run_kernel  # noqa: E402
from nodes import call_node  # noqa: E402

from slipway.compiler.machine import host_isa  # noqa: E402
from slipway.compiler.target import Target  # noqa: E402
from slipway.plugins.linear.plugin import PLUGIN  # noqa: E402
from slipway.plugins.plugin import Kernel  # noqa: E402
from slipway.quantization.formats import FORMATS, WeightFormat  # noqa: E402

SHAPES = {  # name: inputs, outputs, gated
    "qkv": (1024, 4096, False),
    "o": (2048, 1024, False),
    "gate_up": (1024, 3072, True),
    "down": (3072, 1024, False),
    "head": (1024, 151936, False),
}
LARGER = {"down_1.7b": (6144, 2048, False), "down_8b": (14336, 4096, False), "gate_up_8b": (4096, 14336, True)}


def lower(shape: str, fmt: WeightFormat, target: Target) -> tuple[Kernel, list[np.ndarray], int, int]:
    inputs, outputs, gated = (SHAPES | LARGER)[shape]
    wide = shape.startswith(("o", "down", "head"))
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    op, weights = (torch.ops.slipway.gated_linear, [weight, weight, "silu"]) if gated else (torch.ops.aten.linear, [weight])
    node = call_node(op.default, torch.zeros(1, inputs).bfloat16().float(), *weights, storage=torch.float32 if wide else torch.bfloat16)
    node.args[0].meta["storage"] = torch.bfloat16
    node.meta.update(weight_format=fmt)
    kernel = PLUGIN.lower(node, target)
    return kernel, [w.pack(*(n.meta["val"] for n in w.nodes)) for w in kernel.weights], inputs, outputs


def repeated(weights: list[np.ndarray], total: int) -> np.ndarray:
    """[copies, bytes]: the weight again and again, `total` bytes or a little more, so that no call finds it in a cache."""
    size = -(-weights[0].nbytes // 4096) * 4096
    copies = -(-total // size)
    memory = guarded(copies * size).reshape(copies, size)
    memory[:, : weights[0].nbytes] = weights[0]
    return memory


def measure(kernel: Kernel, lib, memory: np.ndarray, x: Tensor, outputs: int, threads: int, repeats: int) -> tuple[float, float]:
    """Seconds a call (mean of a repeat, best of repeats), and bytes a second that reading the same memory reaches."""
    out = torch.empty(len(x), outputs, dtype=kernel.output_dtypes[0])
    seconds, reading = [], []
    for _ in range(repeats):
        rounds = [[row] for row in memory]
        seconds.append(
            statistics.mean(
                run_kernel(lib, kernel.symbol, [x], [out], rounds, threads=threads, shared_scratch=kernel.shared_scratch_at(len(x)),
                           local_scratch=kernel.local_scratch)
            )
        )
        reading.append(memory.nbytes / lib.driver_read(memory.ctypes.data, memory.nbytes, threads))
    return min(seconds), max(reading)


@click.command()
@click.option("--rows", default="1,8,32,512", show_default=True)
@click.option("--formats", default="bf16,int8,int4g128", show_default=True, help=", ".join(map(str, FORMATS)))
@click.option("--shapes", default=",".join(SHAPES), show_default=True, help=f"also {', '.join(LARGER)}")
@click.option("--threads", default=2, show_default=True)
@click.option("--isa", default=host_isa, help="avx2, avx512, avx512_bf16 or amx; default: the strongest here")
@click.option("--megabytes", default=600, show_default=True, help="of weights to go through, more than any cache holds")
@click.option("--repeats", default=3, show_default=True)
def main(rows: str, formats: str, shapes: str, threads: int, isa: str, megabytes: int, repeats: int) -> None:
    target, by_name = Target("cpu", isa), {str(f): f for f in FORMATS}
    click.echo(f"{'shape':12}{'format':10}{'rows':>6}{'ms':>10}{'GB/s':>8}{'of read':>9}{'TFLOP/s':>9}")
    for shape in shapes.split(","):
        for fmt in formats.split(","):
            kernel, weights, inputs, outputs = lower(shape, by_name[fmt], target)
            lib, memory = compile_kernel(kernel.source, target), repeated(weights, megabytes << 20)
            for count in map(int, rows.split(",")):
                copies = memory[: max(4, len(memory) // max(1, count // 16))]
                x = torch.randn(count, inputs).bfloat16()
                seconds, reading = measure(kernel, lib, copies, x, outputs, threads, repeats)
                speed = weights[0].nbytes / seconds
                click.echo(
                    f"{shape:12}{fmt:10}{count:6}{seconds * 1e3:10.3f}{speed / 1e9:8.1f}{speed / reading:9.0%}"
                    f"{kernel.cost.token_flops * count / seconds / 1e12:9.3f}"
                )


if __name__ == "__main__":
    main()
