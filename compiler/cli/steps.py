"""The steps of a plan  ->  groups of the same step in every layer, and what a group moves and computes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)|(?<=_)\d+$")


@dataclass(frozen=True)
class Work:
    """What a step of the engine is about: tokens over all sequences, and cached tokens each sequence attends to."""

    sequences: int
    context: int

    @property
    def tokens(self) -> int:
        """A decoding sequence adds one token a step."""
        return self.sequences


@dataclass
class StepGroup:
    """steps: numbers in the plan. weight_bytes: of all of them, what several steps share counted once."""

    name: str
    op: str
    steps: list[int] = field(default_factory=list)
    weight_bytes: int = 0
    costs: list[dict] = field(default_factory=list)
    launches: list = field(default_factory=list)  # manifest.Launch of all of them, on a GPU

    def bytes_moved(self, work: Work) -> int:
        return sum(
            cost.get("weight_bytes", 0) + cost.get("token_bytes", 0) * work.tokens + cost.get("kv_bytes", 0) * work.sequences * work.context
            for cost in self.costs
        )

    def num_launches(self, work: Work) -> int:
        """Kernels of the CUDA graph for this work."""
        count = 1 << (work.tokens - 1).bit_length()  # of tokens and of sequences
        ranges = [((l.min_rows, l.max_rows), (l.min_sequences, l.max_sequences)) for l in self.launches if l.min_new_tokens == 1]
        return sum(all(least <= count <= (most or count) for least, most in both) for both in ranges)

    def flops(self, work: Work) -> int:
        return sum(
            cost.get("token_flops", 0) * work.tokens + cost.get("kv_flops", 0) * work.sequences * work.context for cost in self.costs
        )


def group_steps(manifest) -> list[StepGroup]:
    """Groups in the order of their first step."""
    groups: dict[tuple[str, str], StepGroup] = {}
    counted: set[int] = set()
    for number, step in enumerate(manifest.plan.steps):
        key = (LAYER.sub("*", step.name), step.op)
        group = groups.setdefault(key, StepGroup(*key))
        group.steps.append(number)
        group.costs.append(step.cost)
        group.launches += manifest.plan.kernels[step.symbol].launches if step.symbol else ()
        group.weight_bytes += sum(manifest.plan.weights[w].bytes for w in step.weights if w not in counted)
        counted.update(step.weights)
    return list(groups.values())
