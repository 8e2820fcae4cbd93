"""What launches kernels on a real GPU does the same on an emulated one: launches, graphs, and what a failure says."""

import numpy as np
import pytest
import torch
from emulated_gpu import TARGET, compile_emulated, run_on_bench
from kernel_bench import Bench
from kernel_harness import Batch, GuardedMatrix, Operand, _guarded_bytes, make_batch
from paged import Sequences, Shape, new_blocks, new_cache
from test_cuda_linear import Case

from slipway.quantization.formats import BF16

CASE = Case(BF16, 40, 2048)


def images_of(kernel):
    library = compile_emulated([kernel])._name
    return {launch.function: library for launch in kernel.launches}


@pytest.mark.parametrize("rows", [3, 16, 70])
def test_a_linear(rows):
    out = torch.full((rows, CASE.outputs), torch.nan)
    held = [GuardedMatrix(CASE.x[:rows])], [GuardedMatrix(out)], [*map(_guarded_bytes, CASE.packed)]
    counts = {"rows": rows, "tokens": rows, "sequences": 1}
    run_on_bench(Bench(images_of(CASE.kernel), 1), CASE.kernel, held, Batch(num_tokens=rows), counts, rows, None)
    torch.testing.assert_close(out.double(), CASE.meaning[:rows], rtol=1e-4, atol=1e-3)


def test_attention_and_its_cache():
    sequences = Sequences(Shape(rotary_dim=32, norm=True), [70])
    cache = new_cache(sequences)
    step = sequences.step([(0, 0, 70)])
    kernel = step.lower(TARGET)
    blocks = new_blocks(sequences, kernel)
    out = torch.full((70, 4 * 32), torch.nan)
    held = [*map(GuardedMatrix, step._split())], [GuardedMatrix(out)], [*map(_guarded_bytes, step.packed_weights(kernel))]
    batch, counts = make_batch(**step._batch()), {"rows": 70, "tokens": 70, "sequences": 1}
    run_on_bench(Bench(images_of(kernel), 1), kernel, held, batch, counts, 70, blocks)
    torch.testing.assert_close(out, step.meaning(cache), rtol=2e-2, atol=2e-2)
    assert blocks.any()


def test_a_graph_runs_as_often_as_it_is_told():
    bench = Bench(images_of(CASE.kernel), 0)
    x, out = bench.put(CASE.x[:2].view(torch.uint8).numpy()), bench.filled(2 * 4 * CASE.outputs)
    call = bench.call(CASE.kernel, bench.batch(Batch(num_tokens=2)), [Operand(x, 2 * CASE.inputs)], [Operand(out, 4 * CASE.outputs)],
                      [bench.put(w) for w in CASE.packed], 2)  # fmt: skip
    graph = bench.native.capture(lambda: bench.launch(CASE.kernel, call, {"rows": 2, "tokens": 2, "sequences": 1}, 1))
    assert bench.native.replay(graph, 3) > 0
    found = np.frombuffer(bench.native.read(out, 2 * 4 * CASE.outputs), np.float32).reshape(2, -1)
    np.testing.assert_allclose(found, CASE.meaning[:2], atol=1e-3)


def test_what_fails_says_which_kernel_and_where():
    bench = Bench(images_of(CASE.kernel), 1)
    call = bench.call(CASE.kernel, bench.batch(Batch(num_tokens=2)), [], [], [], 2)
    function = bench.native.function(bench.images[CASE.kernel.launches[0].function], CASE.kernel.launches[0].function, 48 << 10)
    with pytest.raises(RuntimeError, match="GPU: a launch: error 1"):
        bench.native.launch(function, (1, 1, 1), 2048, 0, bytes(call))
    with pytest.raises(RuntimeError, match="no_such"):
        bench.native.function(next(iter(bench.images.values())), "no_such", 0)
    with pytest.raises(RuntimeError, match=r"GPU: a step: linear_n40_k2048\w*_upto8: block \(0, 0, 0\), thread \d+: \d+ bytes of shared memory in a launch that gives 16"):
        bench.native.launch(function, (1, 1, 1), 256, 16, bytes(bench.call(CASE.kernel, bench.batch(Batch(num_tokens=0)), [], [], [bench.put(w) for w in CASE.packed], 2)))
        bench.native.synchronize()
