"""The executor replays a plan: same logits whatever the team's size, every thread in every step, rows where they belong."""

from dataclasses import replace

import numpy as np
import pytest
from toy_engine import BLOCK_SIZE, VOCAB, continuation, edit_plan

from slipway.runtime import _native
from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Manifest
from slipway.runtime.segments import Segments

NUM_BLOCKS = 64


def load(directory, threads=1):
    manifest = Manifest.read(directory)
    weights = [_native.Mapping(str(directory / "weights" / w.file), w.bytes) for w in manifest.plan.weights]
    return _native.Executor(manifest, str(directory), weights, NUM_BLOCKS, threads)


def ints(values):
    return np.array(values, np.int32)


def run_prompts(executor, prompts, first_block=0, logit_rows=None):
    """Logits of the last token of each prompt, each in blocks of its own, laid out backwards."""
    ends = np.cumsum([len(prompt) for prompt in prompts])
    per_prompt = max(-(-len(prompt) // BLOCK_SIZE) for prompt in prompts)
    table = np.arange(len(prompts) * per_prompt, dtype=np.int32)[::-1].reshape(len(prompts), per_prompt) + first_block
    return executor.run(
        ints([token for prompt in prompts for token in prompt]),
        ints([position for prompt in prompts for position in range(len(prompt))]),
        ints([0, *ends]),
        ints([len(prompt) for prompt in prompts]),
        np.ascontiguousarray(table),
        ints(ends - 1 if logit_rows is None else logit_rows),
    )


PROMPTS = [[5, 6, 7], [1], [9] * 11, list(range(20))]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_logits_of_a_ragged_batch(toy, threads):
    logits = run_prompts(load(toy(extra=("toy_count",)), threads), PROMPTS)
    assert logits.shape == (4, VOCAB)
    assert [int(row.argmax()) for row in logits] == [continuation(prompt, 1)[0] for prompt in PROMPTS]


def test_steps_leave_nothing_behind(toy):
    executor = load(toy(), 2)
    first = run_prompts(executor, PROMPTS)
    for _ in range(200):  # tickets are new each time
        assert np.array_equal(run_prompts(executor, PROMPTS), first)


def test_no_logits_wanted(toy):
    assert run_prompts(load(toy()), PROMPTS, logit_rows=[]).shape == (0, VOCAB)


def test_a_segment_runs_between_kernels(toy):
    directory = toy(segment=True)
    executor = load(directory, 2)
    segments = Segments(Manifest.read(directory), directory, 1)
    segments.bind(executor.arena())
    executor.run_segments_with(segments.run)
    plain = run_prompts(load(toy(), 2), PROMPTS)
    assert np.array_equal(run_prompts(executor, PROMPTS), 2 * plain)


def test_a_segment_is_given_the_arrays_of_its_batch(toy):
    executor, given = load(toy(segment=True), 2), []
    executor.run_segments_with(lambda step, *arrays: given.append([array.tolist() for array in arrays]))
    run_prompts(executor, PROMPTS[:2])
    assert given == [[[5, 6, 7, 1], [0, 1, 2, 0], [2, 3]]]


def test_a_segment_that_is_not_the_plans_is_refused(toy):
    directory = toy(segment=True)
    executor = load(directory)
    edit_plan(directory, steps=tuple(
        replace(step, batch_inputs=("positions",)) if step.segment else step for step in Manifest.read(directory).plan.steps
    ))  # fmt: skip
    with pytest.raises(EngineError, match=r"segments/double.onnx: \(x\) -> 1 values, expected 1 inputs, \('positions',\), 1 outputs"):
        Segments(Manifest.read(directory), directory, 1).bind(executor.arena())


def test_a_segment_that_fails_is_an_error_and_the_next_run_is_well(toy):
    executor = load(toy(segment=True), 2)
    fails = iter([True, False])

    def run(step, *batch):
        if next(fails):
            raise ValueError("no such luck")

    executor.run_segments_with(run)
    with pytest.raises(RuntimeError, match="no such luck"):
        run_prompts(executor, PROMPTS)
    run_prompts(executor, PROMPTS)


def test_step_times(toy):
    executor = load(toy(extra=("toy_dawdle",)), 2)
    executor.time_steps(True)
    run_prompts(executor, PROMPTS)
    assert len(executor.step_seconds) == 5
    assert executor.step_seconds[4] >= 1e-3 and sum(executor.step_seconds[:4]) >= 0


@pytest.mark.parametrize("broken", [{"block": NUM_BLOCKS}, {"token": VOCAB}, {"row": 3}, {"position": 1}, {"position": 40}])
def test_a_batch_outside_the_limits_is_refused(toy, broken):
    with pytest.raises(ValueError, match="not within the engine's limits"):
        load(toy()).run(ints([1, 2, broken.get("token", 3)]), ints([0, 1, broken.get("position", 2)]), ints([0, 3]), ints([3]),
                        ints([[broken.get("block", 0)]]), ints([broken.get("row", 2)]))


def test_a_missing_kernel_is_named(toy):
    with pytest.raises(RuntimeError, match="no kernel toy_missing"):
        load(toy(extra=("toy_missing",)))
