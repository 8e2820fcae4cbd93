"""An engine directory -> the text that written_plan.hpp reads, its arena laid out anew with a guard page behind each buffer."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

from slipway.runtime.manifest import Buffer, Manifest, Plan

PAGE = 4096
LINE = 64


@dataclasses.dataclass
class Words:
    """dropped: bytes by which things are stated smaller than they are, by name, for tests of the guards."""

    engine: pathlib.Path
    manifest: Manifest
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, engine: pathlib.Path, **dropped: int) -> Words:
        return cls(engine, Manifest.read(engine), dropped)

    def less(self, name: str, size: int) -> int:
        return size - self.dropped.get(name, 0)

    def write(self, path: pathlib.Path, plan: Plan | None = None, library: pathlib.Path | None = None) -> pathlib.Path:
        """plan, library: instead of the engine's own."""
        plan, limits = plan or self.manifest.plan, self.manifest.limits
        plan, guards, arena_bytes = spread(plan, limits.max_batch_tokens, limits.max_logit_rows)
        weights = (f"{self.engine}/weights/{w.file} {self.less(f'weight{i}', w.bytes)}" for i, w in enumerate(plan.weights))
        words = [
            str(library or self.engine / "kernels" / plan.library),
            int("amx_tile" in self.manifest.target.cpu_flags),
            arena_bytes,
            self.less("shared_scratch", plan.shared_scratch_bytes),
            self.less("local_scratch", plan.local_scratch_bytes),
            plan.vocab_size,
            operand(plan, plan.logits),
            f"{plan.kv.layers} {plan.kv.block_size} {plan.kv.num_blocks} {self.less('kv', plan.kv.block_bytes)}",
            f"{limits.max_sequence_length} {limits.max_batch_tokens} {limits.max_sequences} {limits.max_logit_rows}",
            listed(guards),
            listed(weights),
            listed(step_words(plan, step) for step in plan.steps),
        ]
        path.write_text("\n".join(map(str, words)) + "\n")
        return path


def listed(items: Iterable) -> str:
    items = list(items)
    return "\n".join(map(str, [len(items), *items]))


def operand(plan: Plan, operand) -> str:
    return f"{plan.buffers[operand.buffer].offset + operand.offset} {operand.row_bytes}"


def step_words(plan: Plan, step) -> str:
    operands = (listed(operand(plan, o) for o in side) for side in (step.inputs, step.outputs))
    layers = [] if step.kv_layer is None else [step.kv_layer]
    return "\n".join([f"{step.symbol} {int(step.rows == 'logit_rows')}", *operands, listed(step.weights), listed(layers)])


def spread(plan: Plan, tokens: int, logit_rows: int) -> tuple[Plan, list[int], int]:
    """Buffers one after another, none in another's place, each ending where a guard page begins; its offsets and the arena's size."""
    buffers: list[Buffer] = []
    guards: list[int] = []
    end = 0
    for buffer in plan.buffers:
        size = -(-buffer.size.at(tokens, logit_rows) // LINE) * LINE
        end += -(-size // PAGE) * PAGE
        buffers.append(dataclasses.replace(buffer, offset=end - size))
        guards.append(end)
        end += PAGE
    return dataclasses.replace(plan, buffers=tuple(buffers)), guards, end
