"""Makes the files here with the libraries that own the formats: autoawq 0.2.9 and auto-gptq 0.7.1, of which a few files are enough.

python make.py AUTOAWQ AUTO_GPTQ: the folders of the packages `awq` and `auto_gptq`, unpacked; neither has to be installed.

Each file holds the parts of a linear of 32 outputs and 128 inputs in groups of 32, and `weight`, f16 [32, 128]: what the library multiplies with.
"""

import importlib.util
import pathlib
import sys
import types

import torch
from safetensors.torch import save_file

OUTPUTS, INPUTS, GROUP = 32, 128, 32


def load(name: str, path: pathlib.Path, **stubs: dict) -> types.ModuleType:
    """The module of one file of a package; stubs: modules that it imports and does not need."""
    for stub, members in stubs.items():
        sys.modules[stub.replace("__", ".")] = types.SimpleNamespace(**members)
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quantized(weight, order):
    """Scales and zeros [groups, outputs] of the least and largest weights of each group of inputs in that order."""
    groups = weight[:, order].unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    return scales, (-low / scales).round().clamp(1, 15)


def awq(folder: pathlib.Path, linear: torch.nn.Linear) -> dict:
    packing = load("awq.utils.packing_utils", folder / "utils/packing_utils.py")
    gemm = load("awq_gemm", folder / "modules/linear/gemm.py", awq={}, awq__utils={}, awq__utils__module={"try_import": lambda name: (None, "")},
                awq__utils__utils={"get_best_device": lambda: "cpu"})
    scales, zeros = (each.T.contiguous() for each in quantized(linear.weight.data, torch.arange(INPUTS)))
    made = gemm.WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales, zeros=zeros)
    parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales}
    return parts | {"weight": packing.dequantize_gemm(*(parts[p] for p in ("qweight", "qzeros", "scales")), 4, GROUP).T.contiguous()}


def gptq(folder: pathlib.Path, linear: torch.nn.Linear, order: torch.Tensor) -> dict:
    module = load("auto_gptq_linear", folder / "nn_modules/qlinear/qlinear_cuda.py")
    made = module.QuantLinear(4, GROUP, INPUTS, OUTPUTS, False, weight_dtype=torch.float16)
    g_idx = (torch.arange(INPUTS) // GROUP)[order.argsort()].int()
    made.pack(linear.half(), *quantized(linear.weight.data.float(), order), g_idx)
    parts = {"qweight": made.qweight, "qzeros": made.qzeros, "scales": made.scales, "g_idx": made.g_idx}
    return parts | {"weight": made(torch.eye(INPUTS).half()).T.contiguous()}


def main(awq_folder: str, gptq_folder: str) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).requires_grad_(False)
    here = pathlib.Path(__file__).parent
    save_file(awq(pathlib.Path(awq_folder), linear), here / "awq.safetensors")
    for name, order in {"gptq": torch.arange(INPUTS), "gptq-act-order": torch.randperm(INPUTS)}.items():
        save_file(gptq(pathlib.Path(gptq_folder), linear, order), here / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
