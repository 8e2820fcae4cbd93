"""What ptxas says of every CUDA kernel on every GPU target, for the shapes of Llama-3.1-8B: registers, and bytes that spill.

    python tests/benchmarks/kernel_resources.py            a table
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "plugins"))
from nodes import CODED_ACTIVATIONS, BF16, F32, call_node, gated_and_readers, norm_and_readers  # noqa: E402
from paged import Sequences, Shape  # noqa: E402

from slipway.compiler.cubins import Resources, compile_cubin  # noqa: E402
from slipway.compiler.target import GPUS, Target  # noqa: E402
from slipway.plugins.draw_tokens.plugin import PLUGIN as DRAW_TOKENS  # noqa: E402
from slipway.plugins.linear.plugin import PLUGIN as LINEAR  # noqa: E402
from slipway.plugins.plugin import Kernel  # noqa: E402
from slipway.plugins.rms_norm.plugin import PLUGIN as RMS_NORM  # noqa: E402
from slipway.quantization.formats import FORMATS, FP8, KV_FORMATS  # noqa: E402

HIDDEN, FFN, VOCABULARY = 4096, 14336, 128256
HEAD_DIMS = (64, 128, 256)


def kernels(target: Target) -> Iterator[tuple[str, Kernel]]:
    """(what it is, kernel) of all that a decoder has."""
    x, weight = torch.empty(1, HIDDEN, device="meta"), torch.empty(HIDDEN, HIDDEN, device="meta")
    gate = torch.empty(FFN, HIDDEN, device="meta")
    for fmt in FORMATS:
        if fmt.zero_point:
            continue
        linears = (
            ("linear", torch.ops.aten.linear.default, (x, weight), BF16),
            ("residual", torch.ops.slipway.linear_residual.default, (x, weight, None, x), F32),
            ("gated", torch.ops.slipway.gated_linear.default, (x, gate, gate, "silu"), BF16),
        )
        for name, op, args, storage in linears:
            node = call_node(op, *args, storage=storage)
            node.args[0].meta["storage"] = BF16
            node.meta.update(weight_format=fmt, activations=CODED_ACTIVATIONS.get(fmt, "bf16"))
            yield f"{name} {fmt}", LINEAR.lower(node, target)
    for head_dim in HEAD_DIMS:
        for kv in KV_FORMATS.values():
            shape = Shape(num_heads=32, num_kv_heads=8, head_dim=head_dim, rotary_dim=head_dim, kv=kv)
            yield f"attention of {head_dim} {kv.name}", Sequences(shape, [1]).step([(0, 0, 1)]).lower(target, BF16)
    norm = call_node(torch.ops.slipway.add_rms_norm.default, torch.empty(1, HIDDEN), torch.empty(1, HIDDEN), torch.empty(HIDDEN), 1e-5, False, storage=(BF16, F32))
    yield "norm", RMS_NORM.lower(norm, target)
    if "e4m3" in target.gpu.factors:
        always = replace(target, cublas=17)
        yield "norm to codes", RMS_NORM.lower(norm_and_readers("add_rms_norm", HIDDEN, (HIDDEN, FP8))[0], always)
        yield "gated fp8 to codes", LINEAR.lower(gated_and_readers(FFN, HIDDEN, FP8, (HIDDEN, FP8))[0], always)
    yield "draw", DRAW_TOKENS.lower(call_node(torch.ops.slipway.draw_tokens.default, torch.empty(1, VOCABULARY), storage=torch.int32), target)


def resources(kind: str) -> dict[str, Resources]:
    """By kernel: "linear bf16 upto8"."""
    target = Target(kind)

    def of(item: tuple[str, Kernel]) -> dict[str, Resources]:
        name, kernel = item
        found = compile_cubin(kernel.source, target.gpu).functions
        assert found.keys() == {launch.function for launch in kernel.launches if not launch.matmul}
        return {f"{name} {function.removeprefix(kernel.symbol).strip('_')}".strip(): r for function, r in found.items()}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {name: r for part in pool.map(of, kernels(target)) for name, r in part.items()}


def main() -> None:
    by_target = {kind: resources(kind) for kind in GPUS}
    print("registers of a thread, and bytes it spills where it does")
    print("| kernel |", " | ".join(GPUS), "|\n| --- |", " --- |" * len(GPUS))
    for name in sorted(set().union(*by_target.values())):
        found = [by_target[kind].get(name) for kind in GPUS]  # what tensor cores do not multiply has no kernel
        cells = ["" if r is None else f"{r.registers}" + (f", {r.spilled_bytes} spilled" if r.spilled_bytes else "") for r in found]
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
