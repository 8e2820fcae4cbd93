"""A kernel that reads or writes beyond a bound is named by AddressSanitizer, when it is emulated."""

import re
import shutil
import subprocess

import pytest
import torch
from emulated_gpu import GPU_TARGETS
from kernel_harness import PLUGINS
from nodes import F32, call_node
from test_cuda_linear import Case

from slipway.compiler import env
from slipway.compiler.kernels import EMULATION_FLAGS
from slipway.plugins.rms_norm import plugin as rms_norm
from slipway.quantization.formats import BF16

ROWS, GROUP = 3, 200
PROGRAM = """
{source}
#include "{launch}"

int main() {{
  static slipway::Batch batch{{}};
  batch.num_tokens = {rows};
  slipway::cuda::Call call{{}};
  call.batch = &batch;
  call.inputs[0] = {{sanitized::buffer({in_bytes} * {rows}), {in_bytes}}};
  call.outputs[0] = {{sanitized::buffer({out_bytes} * {rows}), {out_bytes}}};
  call.weights[0] = sanitized::buffer({weight_bytes});
  return sanitized::run({function}, call, {{{grid}}}, {threads}, {shared_bytes});
}}
"""


def norm():
    node = call_node(torch.ops.slipway.rms_norm.default, torch.zeros(2, GROUP), torch.zeros(GROUP), 1e-6, False, storage=F32)
    return rms_norm.PLUGIN.lower(node, GPU_TARGETS[0]), 4 * GROUP, 4 * GROUP


def linear():
    case = Case(BF16, 24, 320)
    return case.kernel, 2 * case.inputs, 4 * case.outputs


SUBJECTS = {
    "norm": (norm, "rms_norm/kernel.cuh", r"column < group \? (to_float.*?) : 0;", r"\1;"),
    "norm_writes": (norm, "rms_norm/kernel.cuh", r"if \(column < group\) store", "store"),
    "linear_rows": (linear, "linear/cuda/few_rows.cuh", r"8 \* c \+ g < rows \? (.*?) : nullptr", r"\1"),
    "linear_outputs": (linear, "linear/cuda/few_rows.cuh", r"row >= rows \|\| output >= P::outputs", "row >= rows"),
}


@pytest.mark.parametrize("is_dropped", [False, True])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_dropped_bound_is_named(name, is_dropped, tmp_path):
    make, header, pattern, replacement = SUBJECTS[name]
    kernel, in_bytes, out_bytes = make()
    headers = tmp_path / "plugins"
    shutil.copytree(PLUGINS, headers, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    if is_dropped:
        text, count = re.subn(pattern, replacement, (headers / header).read_text())
        assert count == 1
        (headers / header).write_text(text)
    launch, counts = kernel.launches[0], {"rows": ROWS, "tokens": ROWS, "sequences": 1}
    source = PROGRAM.format(source=kernel.source, launch=PLUGINS.parent / "tests/plugins/sanitized_launch.hpp", rows=ROWS, in_bytes=in_bytes,
                            out_bytes=out_bytes, weight_bytes=kernel.weights[0].bytes, function=launch.function, threads=launch.threads,
                            shared_bytes=launch.shared_bytes, grid=", ".join(f"{e.at(counts)}u" for e in launch.grid))  # fmt: skip
    (tmp_path / "program.cpp").write_text(source)
    flags = [*EMULATION_FLAGS, "-O1", "-g1", "-fsanitize=address", "-I", headers / "include", "-I", headers]
    subprocess.run([*env.cxx(), *map(str, flags), str(tmp_path / "program.cpp"), "-o", str(tmp_path / "program")], check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True)
    if is_dropped:
        assert done.returncode and "AddressSanitizer: heap-buffer-overflow" in done.stderr and launch.function in done.stderr
    else:
        assert done.returncode == 0, done.stderr
