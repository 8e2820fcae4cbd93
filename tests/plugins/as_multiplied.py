"""What tensor cores multiply in the place of rows of activations, [rows, K], that a linear makes codes of."""

import torch

from slipway.quantization import floats


def in_e4m3(x):
    """A row's largest becomes 448."""
    largest = x.abs().amax(1, keepdim=True)
    return floats.e4m3_values(floats.e4m3_bits(x * (x.new_tensor(448) / largest))) * (largest / 448)


def in_nvfp4(x):
    """The largest of 16 neighbours becomes 6, as near as their e4m3 scale gets; the largest scale of a row is 448."""
    largest = x.abs().amax(1, keepdim=True)
    per_unit, groups = x.new_tensor(2688) / largest, torch.nn.functional.pad(x, (0, -x.shape[1] % 16)).unflatten(1, (-1, 16))
    scales = floats.e4m3_values(floats.e4m3_bits(groups.abs().amax(2) * per_unit / 6))
    codes = floats.e2m1_codes(groups * torch.where(scales > 0, per_unit / scales, 0)[..., None])
    return (floats.e2m1_values(codes) * (scales * (largest / 2688))[..., None]).flatten(1)[:, : x.shape[1]]


AS_MULTIPLIED = {"bf16": torch.Tensor.float, "fp8": in_e4m3, "nvfp4": in_nvfp4}  # by a recipe's activations
