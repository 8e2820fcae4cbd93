"""No CUDA kernel spills registers or waits where it should not, on any GPU target, and every launch is within what its GPU gives a block."""

import sys
from pathlib import Path

import pytest
from slipway.compiler.target import GPUS, Target

sys.path.append(str(Path(__file__).parent))
import kernel_resources  # noqa: E402


@pytest.mark.parametrize("kind", GPUS)
def test_nothing_spills(kind):
    found = kernel_resources.resources(kind)
    assert len(found) > 50
    assert {name: r.spilled_bytes for name, r in found.items() if r.spilled_bytes} == {}
    assert [name for name, r in found.items() if r.serialized] == []
    assert all(16 <= r.registers <= 255 for r in found.values())


@pytest.mark.parametrize("kind", GPUS)
def test_launches_fit_their_gpu(kind):
    target = Target(kind)
    for name, kernel in kernel_resources.kernels(target):
        for launch in kernel.launches:
            assert launch.shared_bytes <= target.gpu.shared_bytes, name
            assert (launch.threads % 32 == 0 and 32 <= launch.threads <= 1024) or launch.matmul
