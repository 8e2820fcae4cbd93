"""What a build did, or would do, as text and as JSON."""

from __future__ import annotations

import pathlib
from dataclasses import asdict, dataclass, field
from typing import Any

from slipway.compiler.cache import StageRecord
from slipway.compiler.cards import Card
from slipway.compiler.machine import MachineLimits
from slipway.compiler.quantities import bytes_text, tokens_text
from slipway.compiler.verify import Accuracy
from slipway.runtime.machine import available_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of a loaded engine, and how many tokens its KV cache holds."""

    weights: int
    kv_cache: int
    kv_tokens: int
    activations: int


@dataclass(frozen=True)
class Prediction:
    """Decoded tokens a second that limits allow, one sequence and all of them. machine: whose limits, as "this machine's"."""

    batch_1: float
    batch_max: float
    max_sequences: int
    machine: str
    limits: MachineLimits | Card


@dataclass
class BuildReport:
    """`segments`: steps that run in ONNX Runtime, with the reason. `unverified`: why a build has no `accuracy`."""

    out: pathlib.Path
    dry_run: bool
    show_why: bool
    memory: Memory
    predictions: list[Prediction] = field(default_factory=list)
    stages: list[StageRecord] = field(default_factory=list)
    segments: dict[str, str] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    unverified: str | None = None
    has_tokenizer: bool = True

    def text(self) -> str:
        lines = self._stage_lines() if self.dry_run or self.show_why else []
        lines += [f"{name}: runs in ONNX Runtime ({why})" for name, why in self.segments.items()]
        lines.append(self._memory_line())
        if not self.has_tokenizer:
            lines.append("the checkpoint has no tokenizer.json: prompts and completions are token ids")
        lines += [f"at most {tokens_text(p.batch_1)} for one sequence, {tokens_text(p.batch_max)} for {p.max_sequences}, by {p.machine} limits"
                  f"{self._card_shortage(p.limits)}" for p in self.predictions]
        if self.accuracy:
            lines.append(self._accuracy_line())
        if self.unverified:
            lines.append(f"not verified: {self.unverified}")
        lines.append(f"{self.out}: {'would be built' if self.dry_run else 'built'}")
        return "\n".join(lines)

    def _stage_lines(self) -> list[str]:
        """One line a kind and reason: thousands of weights are told in a few lines."""
        groups: dict[tuple[str, str], list[str]] = {}
        for stage in self.stages:
            groups.setdefault((stage.kind, stage.why), []).append(stage.subject)
        return [f"{kind}: {subjects[0] if len(subjects) == 1 else f'{len(subjects)} of them'}: {why}" for (kind, why), subjects in groups.items()]

    def _memory_line(self) -> str:
        m = self.memory
        total = m.weights + m.kv_cache + m.activations
        return (f"{bytes_text(total)} of memory: weights {bytes_text(m.weights)}, KV cache {bytes_text(m.kv_cache)} for {m.kv_tokens} tokens, "
                f"activations {bytes_text(m.activations)}{self._shortage(total)}")

    @staticmethod
    def _shortage(total: int) -> str:
        available = available_bytes()
        return f"; more than the {bytes_text(available)} that are free here" if total > available else ""

    def _card_shortage(self, limits: MachineLimits | Card) -> str:
        m = self.memory
        fits = not isinstance(limits, Card) or m.weights + m.kv_cache + m.activations <= limits.memory_bytes
        return "" if fits else f"; it has {bytes_text(limits.memory_bytes)}, too little"

    def _accuracy_line(self) -> str:
        a = self.accuracy
        return f"verified: KL {a.kl:.2g} nats a token (at most {a.limit:g}), top-1 agreement {a.top1:.1%} over {a.tokens} tokens"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"out": str(self.out)}
