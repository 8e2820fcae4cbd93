"""Buffers that are alive together never overlap, and the arena is no larger than it must be."""

from hypothesis import given
from hypothesis import strategies as st

from slipway.compiler.arena import ALIGNMENT, Lifetime, align, place

LIFETIMES = st.lists(st.builds(lambda size, first, length: Lifetime(size, first, first + length),
                               st.integers(0, 5000), st.integers(0, 30), st.integers(0, 8)), max_size=25)  # fmt: skip


@given(LIFETIMES)
def test_nothing_alive_together_overlaps(lifetimes):
    offsets, total = place(lifetimes)
    for i, (a, at) in enumerate(zip(lifetimes, offsets)):
        assert at % ALIGNMENT == 0 and at + a.bytes <= total
        for b, bt in zip(lifetimes[:i], offsets):
            assert not a.meets(b) or at + a.bytes <= bt or bt + b.bytes <= at


@given(LIFETIMES)
def test_the_arena_lies_between_the_peak_and_the_sum(lifetimes):
    _, total = place(lifetimes)
    steps = range(max((x.last for x in lifetimes), default=0) + 1)
    peak = max(sum(align(x.bytes) for x in lifetimes if x.first <= step <= x.last) for step in steps)
    assert peak <= total <= sum(align(x.bytes) for x in lifetimes)


def test_a_chain_of_steps_needs_two_buffers():
    chain = [Lifetime(1000, step, step + 1) for step in range(50)]
    assert place(chain)[1] == 2 * align(1000)
