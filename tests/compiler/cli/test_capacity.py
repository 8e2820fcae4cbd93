"""What an engine takes, and what is refused before it is loaded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slipway.compiler.cli.bench import Load
from slipway.compiler.cli.capacity import check_load
from slipway.compiler.errors import UserError
from slipway.runtime.capacity import Capacity

CAPACITY = Capacity(sequences=4, longest=128, blocks=6, block_size=32)


@pytest.mark.parametrize(
    ("sequences", "tokens", "message"),
    [
        (5, 1, "--batch: 5; expected at most 4, the engine's limits.max_sequences"),
        (1, 129, "--new: 129; expected at most 128, the engine's limits.max_sequence_length"),
        (2, 65, "--new, of 2 at once: 65; expected at most 64, which the KV cache holds of each\nhint: --kv-tokens 224, or fewer"),
    ],
)
def test_refused(sequences, tokens, message):
    assert not CAPACITY.takes(sequences, tokens)
    with pytest.raises(UserError) as error:
        check_load(CAPACITY, sequences, tokens, "--new")
    assert message in str(error.value)


open_or = lambda low, high: st.none() | st.integers(low, high)  # noqa: E731


@given(st.integers(1, 40), st.integers(4, 5000), st.integers(4, 300), st.sampled_from([4, 16, 32]), open_or(1, 2000), open_or(2, 2000))
def test_what_bench_does_by_itself_is_refused_only_for_what_was_asked(sequences, longest, blocks, block_size, prompt, new):
    capacity = Capacity(sequences, longest, blocks, block_size)
    if (prompt or 2) + (new or 2) > capacity.tokens_of(1):
        with pytest.raises(UserError, match="^--prompt and --new"):
            Load.within(capacity, None, prompt, new, None)
        return
    load = Load.within(capacity, None, prompt, new, None)
    assert prompt in (None, load.prompt) and new in (None, load.new) and load.new > 1
    assert all(capacity.takes(count, load.prompt + load.new) for count in load.batch) and capacity.takes(1, max(load.prefill) + 1)
    assert capacity.takes(1, load.start + 1) and load.start > 0


def test_what_bench_does_by_itself():
    assert Load.within(Capacity(32, 2048, 32 * 9 - 1, 32), None, None, None, None) == Load([1, 8, 32], 128, 128, [1024], 16)
    assert Load.within(CAPACITY, None, 16, None, None) == Load([1], 16, 112, [127], 16)
