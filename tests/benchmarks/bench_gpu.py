"""Every CUDA kernel beside the limits of the GPU it runs on, measured in the same run, in the shapes of Llama-3.1-8B.

    python tests/benchmarks/bench_gpu.py --json out.json      on a machine with a GPU
    python tests/benchmarks/bench_gpu.py --emulate            the same calls in tiny shapes, by emulation: shows that they work

Weights, keys and values are rotated over more memory than L2 holds; times are of graph replays. Few rows and decoding are held against the
read rate, many rows and prefill against the rate of mma.sync, both probed here. Each kernel must give the same bits in all replays. What torch does of some of the same work stands below.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import click
import numpy as np
import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "plugins"))
from emulated_gpu import compile_emulated  # noqa: E402
from kernel_bench import Bench, compile_images, target_here  # noqa: E402
from kernel_harness import Batch, Operand, make_batch  # noqa: E402
from nodes import CODED_ACTIVATIONS, BF16, call_node  # noqa: E402
from paged import Sequences, Shape  # noqa: E402

from slipway.compiler.quantities import rate_text  # noqa: E402
from slipway.compiler.target import Target  # noqa: E402
from slipway.plugins.linear.plugin import PLUGIN as LINEAR  # noqa: E402
from slipway.plugins.paged_attention.arguments import BLOCK_SIZE  # noqa: E402
from slipway.plugins.plugin import ONE, Extent, Kernel, Launch  # noqa: E402
from slipway.quantization.formats import FORMATS, KV_FORMATS, WeightFormat  # noqa: E402
from slipway.runtime import _native  # noqa: E402

PROBE_HEADER = pathlib.Path(__file__).with_name("gpu_probe.cuh")
PROBE_THREADS = 512
COLD_BYTES = 256 << 20  # more than twice what any L2 holds
REPLAYS, SAME = 20, 200


@dataclass(frozen=True)
class Scale:
    """What is measured: tiny for the emulation."""

    hidden: int = 4096
    ffn: int = 14336
    vocab: int = 128256
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rows: tuple[int, ...] = (1, 8, 16, 64, 512, 2048)
    decodes: tuple[tuple[int, int], ...] = ((1, 4096), (16, 4096), (64, 4096), (16, 16384))  # sequences, cached tokens
    prefills: tuple[int, ...] = (512, 2048, 8192)
    cold_bytes: int = COLD_BYTES
    replays: int = REPLAYS
    same: int = SAME
    blocks: int = 2  # of the probes, a multiprocessor
    repeats: int = 4096  # of multiplications in the probe
    formats: tuple[str, ...] = ("bf16", "int8", "fp8", "fp8_block", "int4g32", "int4g128", "nvfp4", "mxfp4")
    linears: tuple[str, ...] = ("q|k|v", "o", "gate|up", "down", "head")
    caches: tuple[str, ...] = ("bf16", "int8", "fp8")


TINY = Scale(64, 128, 96, 4, 2, 32, (1, 17), ((2, 40),), (40,), 1 << 16, 1, 2, 0, 2, ("bf16", "nvfp4"), ("gate|up", "down"), ("bf16", "fp8"))


@dataclass(frozen=True)
class Result:
    """share: of the read rate or the multiplication rate, whichever this work is held against."""

    kernel: str
    work: str
    seconds: float
    rate: float
    unit: str
    share: float


@dataclass(frozen=True)
class Limits:
    read_bytes_per_s: float
    flops_per_s: float
    node_s: float


class Measure:
    def __init__(self, target: Target, scale: Scale, emulate: bool):
        self.target, self.scale, self.emulate = target, scale, emulate

    def bench(self, kernel: Kernel) -> Bench:
        if self.emulate:
            library = compile_emulated([kernel])._name
            return Bench({launch.function: library for launch in kernel.launches if not launch.matmul}, 0)
        return Bench(compile_images([kernel], self.target))

    def seconds(self, bench: Bench, kernel: Kernel, calls: list, counts: dict[str, int], longest: int) -> float:
        """Of one call, the mean over all of `calls` in turn."""
        graph = bench.native.capture(lambda: [bench.launch(kernel, call, counts, longest) for call in calls])
        bench.native.replay(graph, 1)
        return min(bench.native.replay(graph, self.scale.replays) for _ in range(3)) / self.scale.replays / len(calls)

    def check_same(self, bench: Bench, kernel: Kernel, call, counts: dict[str, int], longest: int, out: int, size: int) -> None:
        """Raises SystemExit if a replay gives other bits than the first."""
        graph, first = bench.native.capture(lambda: bench.launch(kernel, call, counts, longest)), None
        for _ in range(self.scale.same):
            bench.native.replay(graph, 1)
            found = bench.native.read(out, size)
            first = first or found
            if found != first:
                raise SystemExit(f"{kernel.symbol}: replays differ")

    def limits(self) -> Limits:
        blocks = max(1, self.scale.blocks * self.target.gpu.multiprocessors)
        kernel = probe_kernel(blocks, self.scale.repeats)
        bench = self.bench(kernel)
        counts = {"rows": 1, "tokens": 1, "sequences": 1}
        batch, out = bench.batch(Batch(num_tokens=1)), bench.filled(16)
        data = bench.filled(self.scale.cold_bytes, 1)
        call = bench.call(kernel, batch, [Operand(data, self.scale.cold_bytes)], [Operand(out, 16)], [], 1)
        seconds = {}
        for launch in kernel.launches:
            one = Kernel(kernel.symbol, kernel.source, (), (), launches=(launch,))
            seconds[launch.function] = self.seconds(bench, one, [call] * (64 if launch.function == "probe_nothing" else 1), counts, 1)
        flops = blocks * PROBE_THREADS // 32 * self.scale.repeats * 4 * 2 * 16 * 8 * 16
        node = seconds["probe_nothing"]
        return Limits(self.scale.cold_bytes / seconds["probe_read"], flops / seconds["probe_multiply"], node)

    def linears(self, limits: Limits) -> Iterator[Result]:
        for fmt, name in itertools.product([f for f in FORMATS if str(f) in self.scale.formats], self.scale.linears):
            linear = Linear(self, name, fmt, self.target)
            for rows in self.scale.rows:
                if name == "head" and rows > 64:
                    continue
                yield result(f"{name} {fmt}", f"{rows} rows", linear.seconds(rows), linear.moved(rows), rows * linear.kernel.cost.token_flops, limits)

    def attention(self, limits: Limits) -> Iterator[Result]:
        s = self.scale
        works = [("decode", [(cached, 1)] * count) for count, cached in s.decodes] + [("prefill", [(0, tokens)]) for tokens in s.prefills]
        longest_of_all = max(c + n for _, w in works for c, n in w)
        for cache, (name, sequences) in itertools.product(s.caches, works):
            shape = Shape(s.heads, s.kv_heads, s.head_dim, s.head_dim, kv=KV_FORMATS[cache])
            kernel = Sequences(shape, [longest_of_all]).step([(0, 0, 1)]).lower(self.target, BF16)
            bench = self.bench(kernel)
            tokens, longest = sum(new for _, new in sequences), max(new for _, new in sequences)
            lengths = np.array([cached + new for cached, new in sequences], np.int32)
            each = -(-int(lengths.max()) // BLOCK_SIZE)
            blocks = np.arange(each * len(lengths), dtype=np.int32).reshape(len(lengths), each)
            positions = np.concatenate([np.arange(c, c + n) for c, n in sequences]).astype(np.int32)
            batch = bench.batch(make_batch(positions=positions, cu_seqlens=np.cumsum([0, *(n for _, n in sequences)]), kv_lens=lengths, block_table=blocks))
            widths = [n * s.head_dim for n in (s.heads, s.kv_heads, s.kv_heads)]
            inputs = [Operand(bench.put(np.full(2 * tokens * w, 0x3C, np.uint8)), 2 * w) for w in widths]
            out, table = bench.filled(2 * tokens * widths[0]), bench.filled(kernel.weights[-1].bytes, 0)
            kv_bytes, size = kernel.cost.kv_bytes * int(lengths.sum()), kernel.kv_block_bytes * blocks.size
            copies = min(16, -(-s.cold_bytes // size) + 1)
            counts = {"rows": tokens, "tokens": tokens, "sequences": len(sequences)}
            calls = [bench.call(kernel, batch, inputs, [Operand(out, 2 * widths[0])], [table], tokens, bench.filled(size, 0)) for _ in range(copies)]
            self.check_same(bench, kernel, calls[0], counts, longest, out, 2 * tokens * widths[0])
            seconds = self.seconds(bench, kernel, calls, counts, longest)
            pairs = sum(n * c + n * (n + 1) // 2 for c, n in sequences)
            yield result(f"attention {name} {cache}", f"{len(sequences)} x {int(lengths.max())} tokens", seconds, kv_bytes, kernel.cost.kv_flops * pairs, limits)


class Linear:
    """One of Llama-3.1-8B's, its weights in copies that no L2 holds."""

    def __init__(self, measure: Measure, name: str, fmt: WeightFormat, target: Target):
        s = measure.scale
        qkv = (s.heads + 2 * s.kv_heads) * s.head_dim
        shapes = {"q|k|v": (qkv, s.hidden), "o": (s.hidden, s.hidden), "gate|up": (s.ffn, s.hidden), "down": (s.hidden, s.ffn), "head": (s.vocab, s.hidden)}
        self.measure, (self.outputs, self.inputs) = measure, shapes[name]
        self.kernel = linear_kernel(name, self.outputs, self.inputs, fmt, target)
        self.bench, sizes = measure.bench(self.kernel), [weight.bytes for weight in self.kernel.weights]
        copies = min(32, -(-s.cold_bytes // min(sizes)) + 1)  # a step reads one of them
        self.weights = [[self._weight(size, i == 0) for size in sizes] for i in range(copies)]

    def _weight(self, size: int, first: bool) -> int:
        return self.bench.put(random_bytes(size)) if first or size < 1 << 24 else self.bench.filled(size, 0x11)

    def moved(self, rows: int) -> int:
        """Bytes of weights, activations and results."""
        matmul = next((launch.matmul for launch in self.kernel.launches if launch.matmul and launch.takes_part(rows)), None)
        return self.kernel.weights[matmul.weight if matmul else 0].bytes + 2 * rows * (self.inputs + self.outputs)

    def seconds(self, rows: int) -> float:
        bench, kernel = self.bench, self.kernel
        x, out = bench.put(np.full(2 * rows * self.inputs, 0x3F, np.uint8)), bench.filled(2 * rows * self.outputs)
        batch, counts = bench.batch(Batch(num_tokens=rows)), {"rows": rows, "tokens": rows, "sequences": 1}
        calls = [bench.call(kernel, batch, [Operand(x, 2 * self.inputs)], [Operand(out, 2 * self.outputs)], weights, rows) for weights in self.weights]
        self.measure.check_same(bench, kernel, calls[0], counts, 1, out, 2 * rows * self.outputs)
        return self.measure.seconds(bench, kernel, calls, counts, 1)


def torch_peers(scale: Scale, limits: Limits) -> Iterator[Result]:
    """What torch does of the same work: a linear of many rows (cuBLAS), and a prompt's attention (FlashAttention)."""
    device, s = "cuda" if torch.cuda.is_available() else "cpu", scale
    weight = torch.randn(2 * s.ffn, s.hidden, dtype=torch.bfloat16, device=device)
    for rows in (rows for rows in s.rows if rows > 16):
        x = torch.randn(rows, s.hidden, dtype=torch.bfloat16, device=device)
        moved = 2 * (weight.numel() + rows * (s.hidden + 2 * s.ffn))
        yield result("torch: gate|up bf16", f"{rows} rows", torch_seconds(lambda: torch.nn.functional.linear(x, weight)), moved, 2 * rows * weight.numel(), limits)
    for tokens in s.prefills:
        q, k, v = (torch.randn(1, heads, tokens, s.head_dim, dtype=torch.bfloat16, device=device) for heads in (s.heads, s.kv_heads, s.kv_heads))
        attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # noqa: B023, E731
        flops = 4 * s.heads * s.head_dim * tokens * (tokens + 1) // 2
        yield result("torch: attention prefill bf16", f"1 x {tokens} tokens", torch_seconds(attend), 4 * k.numel(), flops, limits)


def torch_seconds(work: Callable[[], object]) -> float:
    """Of one call, the best mean of three times twenty."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def mean() -> float:
        wait()
        started = time.perf_counter()
        for _ in range(REPLAYS):
            work()
        wait()
        return (time.perf_counter() - started) / REPLAYS

    work()
    return min(mean() for _ in range(3))


def probe_kernel(blocks: int, repeats: int) -> Kernel:
    source = f"""#include "{PROBE_HEADER}"
using namespace slipway::cuda;
SLIPWAY_KERNEL(probe_read, {PROBE_THREADS}, 1) {{ probe::read(call); }}
SLIPWAY_KERNEL(probe_multiply, {PROBE_THREADS}, 1) {{ probe::multiply<{repeats}>(call); }}
SLIPWAY_KERNEL(probe_nothing, 32, 1) {{}}
"""
    grid = (Extent(fixed=blocks), ONE, ONE)
    launches = (Launch("probe_read", PROBE_THREADS, grid), Launch("probe_multiply", PROBE_THREADS, grid), Launch("probe_nothing", 32, (ONE, ONE, ONE)))
    return Kernel("probe", source, (), (), launches=launches)


def linear_kernel(name: str, outputs: int, inputs: int, fmt: WeightFormat, target: Target) -> Kernel:
    x, weight = torch.empty(1, inputs, device="meta"), torch.empty(outputs, inputs, device="meta")
    gated = name == "gate|up"
    op = torch.ops.slipway.gated_linear.default if gated else torch.ops.aten.linear.default
    node = call_node(op, x, weight, *((weight, "silu") if gated else ()), storage=BF16)
    node.args[0].meta["storage"] = BF16
    node.meta.update(weight_format=fmt, activations=CODED_ACTIVATIONS.get(fmt, "bf16"))
    return LINEAR.lower(node, target)


def random_bytes(size: int) -> np.ndarray:
    """That are numbers in every format: no NaN in bf16 or e4m3."""
    return np.random.default_rng(0).integers(0, 0x38, size, np.uint8)


def result(kernel: str, work: str, seconds: float, moved: int, flops: int, limits: Limits) -> Result:
    """Held against the limit that takes longer."""
    reads, multiplies = moved / limits.read_bytes_per_s, flops / limits.flops_per_s
    if reads >= multiplies:
        return Result(kernel, work, seconds, moved / seconds, "B", reads / seconds)
    return Result(kernel, work, seconds, flops / seconds, "FLOP", multiplies / seconds)


@click.command()
@click.option("--emulate", is_flag=True, help="Tiny shapes, by emulation.")
@click.option("--json", "json_path", type=click.Path(path_type=pathlib.Path), help="Write the results there too.")
def main(emulate: bool, json_path: pathlib.Path | None) -> None:
    """Print what each kernel reaches of the GPU's own limits."""
    name, target = ("an emulated GPU", Target("sm90")) if emulate else (_native.first_gpu()[0], target_here())
    measure = Measure(target, TINY if emulate else Scale(), emulate)
    limits = measure.limits()
    click.echo(f"{name}, {target}: reads {rate_text(limits.read_bytes_per_s, 'B')}, multiplies {rate_text(limits.flops_per_s, 'FLOP')} by mma.sync, "
               f"{limits.node_s * 1e6:.2f} µs a kernel of a graph")  # fmt: skip
    click.echo("\n| kernel | work | time | rate | of the limit |\n| --- | --- | --- | --- | --- |")
    results = []
    for found in itertools.chain(measure.linears(limits), measure.attention(limits), torch_peers(measure.scale, limits)):
        results.append(found)
        click.echo(f"| {found.kernel} | {found.work} | {found.seconds * 1e6:.1f} µs | {rate_text(found.rate, found.unit)} | {found.share:.0%} |")
    if json_path:
        json_path.write_text(json.dumps({"gpu": name, "limits": asdict(limits), "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
