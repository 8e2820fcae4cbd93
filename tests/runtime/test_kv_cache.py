"""The KV cache against a model: what each block holds, told apart by the tokens that put it there."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from slipway.runtime._native import core

BLOCK = 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)  # few tokens: many shared prefixes


class Cache(RuleBasedStateMachine):
    """content: block -> (salt, tokens from position 0) that was published there last."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.total = 9
        self.kv = core.KvCache(self.total, BLOCK)
        self.content = {}
        self.held = {}  # lease -> (salt, tokens, computed)

    @rule(target=leases, tokens=TOKENS, salt=st.integers(0, 1))
    def acquire(self, tokens, salt):
        lease = self.kv.acquire(tokens, salt)
        if lease is None:
            return None
        blocks, cached = self.kv.blocks(lease), self.kv.num_published(lease)
        assert len(blocks) == -(-len(tokens) // BLOCK) and cached <= (len(tokens) - 1) // BLOCK
        for i, block in enumerate(blocks):
            if i < cached:
                assert self.content[block] == (salt, tokens[: (i + 1) * BLOCK])
            else:
                self.content.pop(block, None)
        for other_salt, other, computed in self.held.values():
            if other_salt == salt:  # what others hold is found
                common = next((i for i, (a, b) in enumerate(zip(tokens, other, strict=False)) if a != b), min(len(tokens), len(other)))
                assert cached >= min(common // BLOCK, computed // BLOCK, (len(tokens) - 1) // BLOCK)
        self.held[lease] = (salt, tokens, cached * BLOCK)
        return lease

    @rule(lease=leases, share=st.floats(0, 1))
    def compute(self, lease, share):
        if lease not in self.held:
            return
        salt, tokens, computed = self.held[lease]
        computed += round(share * (len(tokens) - computed))
        before = self.kv.counts
        self.kv.publish(lease, tokens, computed)
        assert self.kv.num_published(lease) == computed // BLOCK
        for i, block in enumerate(self.kv.blocks(lease)[: computed // BLOCK]):
            assert self.content.setdefault(block, (salt, tokens[: (i + 1) * BLOCK])) == (salt, tokens[: (i + 1) * BLOCK])
        assert self.kv.counts[0] >= before[0]
        self.held[lease] = (salt, tokens, computed)

    @rule(lease=leases, more=TOKENS)
    def grow(self, lease, more):
        if lease not in self.held:
            return
        salt, tokens, computed = self.held[lease]
        before, blocks = self.kv.counts, self.kv.blocks(lease)
        if self.kv.grow(lease, len(tokens) + len(more)):
            for block in self.kv.blocks(lease)[len(blocks) :]:
                self.content.pop(block, None)
            self.held[lease] = (salt, tokens + more, computed)
        else:
            assert self.kv.counts == before and self.kv.blocks(lease) == blocks

    @rule(lease=consumes(leases))
    def release(self, lease):
        if self.held.pop(lease, None):
            self.kv.release(lease)

    @rule(tokens=TOKENS, salt=st.integers(0, 1), data=st.data())
    def release_for(self, tokens, salt, data):
        """What is foretold of releasing some leases for a sequence comes true."""
        released = [lease for lease in self.held if data.draw(st.booleans())]
        spare = self.kv.spare_after(tokens, salt, released)
        for lease in released:
            self.release(lease)
        lease = self.acquire(tokens, salt)
        assert (lease is not None) == (spare >= 0)
        if lease is not None:
            assert sum(self.kv.counts[:2]) == spare
            self.release(lease)

    @invariant()
    def conserved(self):
        self.kv.check_integrity()
        assert sum(self.kv.counts) == self.total

    @invariant()
    def fresh_blocks_have_one_owner(self):
        fresh = [block for lease in self.held for block in self.kv.blocks(lease)[self.kv.num_published(lease) :]]
        assert len(fresh) == len(set(fresh))


Cache.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCache = Cache.TestCase


def compute(kv, tokens, salt=0):
    lease = kv.acquire(tokens, salt)
    kv.publish(lease, tokens, len(tokens))
    kv.release(lease)


def cached_tokens(kv, tokens, salt=0):
    lease = kv.acquire(tokens, salt)
    count = kv.num_published(lease) * BLOCK
    kv.release(lease)
    return count


def test_least_recently_used_goes_first_and_leaves_before_their_prefix():
    kv = core.KvCache(6, BLOCK)
    first, second = [1] * 8 + [0], [2] * 8 + [0]
    compute(kv, first)
    compute(kv, second)
    assert kv.counts == (2, 4, 0)
    assert cached_tokens(kv, first) == 8  # a use: now `second` is older
    kv.release(kv.acquire([3] * 12, 0))  # needs a third block
    assert (cached_tokens(kv, second), cached_tokens(kv, first)) == (4, 8)


def test_salts_share_nothing():
    kv = core.KvCache(8, BLOCK)
    compute(kv, [1] * 9, salt=1)
    assert (cached_tokens(kv, [1] * 9, salt=1), cached_tokens(kv, [1] * 9, salt=2)) == (8, 0)


def test_the_last_token_is_always_computed():
    kv = core.KvCache(8, BLOCK)
    compute(kv, [1] * 8)
    assert (cached_tokens(kv, [1] * 8), cached_tokens(kv, [1] * 9)) == (4, 8)


def test_equal_blocks_computed_twice_become_one():
    kv = core.KvCache(8, BLOCK)
    tokens = [1] * 9
    first, second = kv.acquire(tokens), kv.acquire(tokens)
    assert not set(kv.blocks(first)) & set(kv.blocks(second))
    kv.publish(first, tokens, 8)
    kv.publish(second, tokens, 8)
    assert kv.blocks(first)[:2] == kv.blocks(second)[:2] and kv.counts == (4, 0, 4)
    kv.check_integrity()
