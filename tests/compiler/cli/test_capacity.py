"""What an engine takes, and what is refused before it is loaded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slipway.compiler.cli.bench import Load
from slipway.compiler.cli.capacity import Capacity
from slipway.compiler.errors import UserError

CAPACITY = Capacity(sequences=4, tokens=128, blocks=6, block_size=32)


def test_of_an_engine_and_of_another_cache(manifest):
    assert Capacity.of(manifest, None) == Capacity(4, 128, 16, 32)
    assert Capacity.of(manifest, 65) == Capacity(4, 96, 3, 32)


@pytest.mark.parametrize(
    ("sequences", "tokens", "message"),
    [
        (5, 1, "--batch: 5; expected at most 4, the engine's limits.max_sequences"),
        (1, 129, "--new: 129; expected at most 128 tokens of a sequence"),
        (2, 97, "--new, of 2 sequences: 256 tokens in the KV cache; expected at most 192\nhint: --kv-tokens 256, or fewer"),
    ],
)
def test_refused(sequences, tokens, message):
    assert not CAPACITY.takes(sequences, tokens)
    with pytest.raises(UserError) as error:
        CAPACITY.check(sequences, tokens, "--new")
    assert message in str(error.value)


@given(st.integers(1, 40), st.integers(4, 5000), st.integers(1, 300), st.sampled_from([1, 16, 32]))
def test_what_bench_does_by_itself_is_never_refused(sequences, longest, blocks, block_size):
    capacity = Capacity(sequences, min(longest, max(4, blocks * block_size)), max(blocks, -(-4 // block_size)), block_size)
    load = Load.within(capacity, None, None, None, None)
    assert all(capacity.takes(count, load.prompt + load.new) for count in load.batch) and capacity.takes(1, max(load.prefill) + 1)
    assert capacity.takes(1, load.start + 1) and load.new > 1


def test_what_bench_does_by_itself():
    assert Load.within(Capacity(32, 2048, 32 * 8, 32), None, None, None, None) == Load([1, 8, 32], 128, 128, [1024], 16)
    assert Load.within(CAPACITY, None, 16, None, None) == Load([1], 16, 64, [127], 16)
