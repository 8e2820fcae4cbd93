"""What is said to run together does, on a real scheduler."""

import pytest
from slipway.runtime.capacity import Capacity
from slipway.runtime.engine import Engine
from slipway.runtime.errors import EngineError
from slipway.runtime.step_times import tokens_to_measure


def test_of_an_engine_and_of_another_cache(toy):
    with Engine.load(toy()) as engine:
        limits, kv = engine.manifest.limits, engine.manifest.plan.kv
        assert engine.kv_tokens == kv.num_blocks * kv.block_size
        assert Capacity.of(engine.manifest) == Capacity(limits.max_sequences, limits.max_sequence_length, kv.num_blocks, kv.block_size)
        assert Capacity.of(engine.manifest, 2 * kv.block_size + 1).blocks == 3


@pytest.mark.parametrize("sequences", [1, 2, 3, 4])
@pytest.mark.parametrize("blocks", [4, 7, 8, 11, 15])
def test_the_longest_that_run_together_do_and_longer_ones_are_refused(toy, sequences, blocks):
    path = toy(extra=("toy_dawdle",))  # or the first ends before the last is submitted
    with Engine.load(path) as engine:
        block_size = engine.manifest.plan.kv.block_size
    with Engine.load(path, kv_tokens=blocks * block_size) as engine:
        longest = Capacity.of(engine.manifest, engine.kv_tokens).tokens_of(sequences)
        assert longest == min(engine.manifest.limits.max_sequence_length, max(0, (blocks + 1) // sequences - 1) * block_size)
        fitting = [few for few in range(1, longest) if few + tokens_to_measure(engine.manifest.limits, sequences, few, rounds=5) <= longest]
        for few in fitting[-1:]:
            assert engine.time_steps(sequences=sequences, context=few, rounds=5)
        with pytest.raises(EngineError, match=f"at most {longest} together"):
            engine.time_steps(sequences=sequences, context=len(fitting) + 1, rounds=5)
    assert fitting or longest < 20
