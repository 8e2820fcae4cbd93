"""A model of no arithmetic, for the scheduler's tests: what a KV slot holds is a hash of all tokens up to its position.

Every step is checked: each sequence reads, at every position, what its own tokens put there, and nobody writes where
another reads. Logits are a function of the hash, so a wrong read would also change tokens.
"""

import functools

import numpy as np
from slipway.runtime._native import core
from slipway.runtime.sampling import SamplingParams

VOCAB, EOS = 12, 0


def params(**options) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "seed": 0, **options}).with_defaults({})


@functools.lru_cache(100_000)
def prefix_hash(tokens: tuple[int, ...]) -> int:
    return hash((prefix_hash(tokens[:-1]), tokens[-1])) if tokens else 1


@functools.lru_cache(100_000)
def logits(tokens: tuple[int, ...]) -> np.ndarray:
    """Mostly the last token's doing, so that texts repeat themselves and drafts come true; eos is rare."""
    habit = np.random.default_rng(tokens[-1] + 1).normal(0, 3, VOCAB)
    whim = np.random.default_rng(prefix_hash(tokens) & 0xFFFFFFFF).normal(0, 1, VOCAB)
    row = (habit + whim).astype(np.float32)
    row[EOS] -= 3
    return row


def expected_output(prompt: list[int], p: SamplingParams, index: int, max_tokens: int) -> list[int]:
    """What a sequence draws when it is alone."""
    sampler, tokens = core.Sampler(VOCAB), list(prompt)
    ending = [*p.stop_token_ids, *([] if p.ignore_eos else [EOS])]
    while len(tokens) < len(prompt) + max_tokens:
        row = logits(tuple(tokens)).copy()
        drawn = sampler.sample_row(row, p, tokens, len(prompt), ending_tokens=ending, seed=p.seed, sequence_index=index)
        tokens.append(drawn.token)
        if drawn.token in ending:
            break
    return tokens[len(prompt) :]


class Engine:
    """A scheduler in the loop that the engine thread runs. `outputs` and `finishes` are by (request id, index).

    overlaps: steps begin while others run, as on a GPU, which cannot draw one token in `again_one_in`; the host draws that a step later.
    """

    def __init__(self, vocabulary=None, overlaps=False, again_one_in=5, **config):
        self.overlaps, self.random, self.again_one_in = overlaps, np.random.default_rng(0), again_one_in
        self.ahead, self.voided, self.num_ahead = None, set(), 0
        self.config = core.SchedulerConfig()
        defaults = dict(num_blocks=64, block_size=4, vocab_size=VOCAB, max_sequence_length=64, max_batch_tokens=16)
        limits = dict(max_sequences=4, max_logit_rows=16, eos_token_ids=[EOS])
        for name, value in {**defaults, **limits, **config}.items():
            setattr(self.config, name, value)
        self.scheduler, self.sampler = core.Scheduler(self.config, vocabulary), core.Sampler(VOCAB)
        self.now, self.slots, self.prompts = 0.0, {}, {}
        self.outputs, self.texts, self.finishes, self.metrics, self.errors = {}, {}, {}, {}, {}
        self.steps = []

    def add(self, id, prompt, p=None, **options):
        refusal = self.scheduler.add(id, prompt, p or params(), self.now, **options)
        if refusal is None:
            self.prompts[id] = prompt
        self.check()
        return refusal

    def cancel(self, id):
        self.scheduler.cancel(id, self.now)
        self.check()

    def step(self, during=None) -> bool:
        """One step; `during` is called while it is in flight. False if there was nothing to compute."""
        self.now += 1
        if not self.ahead:
            step = self.scheduler.next(self.now)
            self.check()
            if step is None:
                self.take(self.scheduler.take_events())
                return False
            rows = self.compute(step)
        else:
            step, self.ahead = self.ahead, None
            rows = self.draw(step)
        self.voided.clear()
        if self.overlaps and (ahead := self.scheduler.next_ahead(self.now)):
            rows = [core.Sampled(0, again=True) if self.random.integers(self.again_one_in) == 0 else row for row in rows]
            self.voided = {self.key(step, i) for i, row in enumerate(rows) if row.again}
            ahead["token_ids"] = [rows[~token].token for token in ahead["token_ids"]]
            self.num_ahead += 1
            self.write(ahead)
            self.ahead = ahead
        if during:
            during()
        self.take(self.scheduler.commit(rows, self.now))
        self.check()
        return True

    def key(self, step, i):
        return step["request_ids"][i], step["sequence_indices"][i]

    def run(self, most_steps=2000):
        """Until all is done. A step that computes nothing while there is work would be a deadlock."""
        for _ in range(most_steps):
            if not self.step():
                assert not self.scheduler.has_work()
                return self
        raise AssertionError("no end in sight")

    def check(self):
        self.scheduler.check_integrity()
        stats = self.scheduler.stats()
        assert stats.free_blocks + stats.cached_blocks + stats.owned_blocks == self.config.num_blocks

    def take(self, events):
        for event in events:
            key = (event.request_id, event.sequence_index)
            assert key not in self.finishes, "news after the end"
            self.outputs.setdefault(key, []).extend(event.tokens)
            self.texts[key] = self.texts.get(key, "") + event.text
            self.metrics[key] = event.metrics
            if event.finish:
                self.finishes[key], self.errors[key] = event.finish, event.error

    def compute(self, step) -> list:
        self.write(step)
        return self.draw(step)

    def write(self, step) -> None:
        """What the step puts into the KV cache; its sequences' tokens come with it."""
        self.steps.append(step)
        config, ends = self.config, step["cu_seqlens"]
        assert 0 < len(step["token_ids"]) <= config.max_batch_tokens
        assert len(step["kv_lens"]) <= config.max_sequences and len(step["rows"]) <= config.max_logit_rows
        sequences = step["sequences"] = [self.sequence(step, i) for i in range(len(step["kv_lens"]))]
        readers = {}
        for i, (tokens, _, blocks) in enumerate(sequences):
            for block in blocks[: -(-len(tokens) // config.block_size)]:
                readers.setdefault(block, set()).add(i)
        for i, (tokens, start, blocks) in enumerate(sequences):
            for position in range(start, len(tokens)):
                block = blocks[position // config.block_size]
                assert readers[block] == {i}, "written by one, read by another"
                before = self.slots[self.slot(blocks, position - 1)][1] if position else 1
                self.slots[self.slot(blocks, position)] = (position, hash((before, tokens[position])))
        for tokens, _, blocks in sequences:
            for position in range(len(tokens)):
                assert self.slots[self.slot(blocks, position)] == (position, prefix_hash(tuple(tokens[: position + 1])))

    def draw(self, step) -> list:
        """Of rows of sequences that left in the meantime nothing is drawn."""
        rows = []
        for row, context in zip(step["logit_rows"], self.scheduler.in_flight()["rows"], strict=True):
            i = next(i for i, end in enumerate(step["cu_seqlens"][1:]) if row < end)
            if self.key(step, i) in self.voided or self.key(step, i) in self.finishes:
                rows.append(core.Sampled(0))
                continue
            assert context.history == step["sequences"][i][0][: step["positions"][row] + 1]
            rows.append(self.sampler.sample(logits(tuple(context.history)).copy(), context))
        return rows

    def sequence(self, step, i):
        """(all its tokens once the step is done, its first position in the step, its blocks)"""
        begin, end = step["cu_seqlens"][i : i + 2]
        positions, width = step["positions"][begin:end], step["max_blocks"]
        assert positions == list(range(step["kv_lens"][i] - (end - begin), step["kv_lens"][i]))
        id, index = step["request_ids"][i], step["sequence_indices"][i]
        known = self.prompts[id] + self.outputs.get((id, index), [])
        tokens = known[: positions[0]] + step["token_ids"][begin:end]
        shared = min(len(known), len(tokens))
        assert tokens[:shared] == known[:shared]
        return tokens, positions[0], step["block_table"][i * width : (i + 1) * width]

    def slot(self, blocks, position):
        return blocks[position // self.config.block_size], position % self.config.block_size
