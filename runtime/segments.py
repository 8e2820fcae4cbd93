"""Runs the ONNX segments of a plan: the executor calls `run` on its first thread, between kernel steps.

An operand of a segment is an array of rows in the arena, a row lying as ONNX has it; its shape, the ONNX file says.
"""

from __future__ import annotations

import math
import pathlib
from dataclasses import dataclass

import numpy as np

from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Manifest, Operand, Step

DTYPES = {"f32": np.float32, "i32": np.int32, "i64": np.int64, "bool": np.bool_}


@dataclass(frozen=True)
class Rows:
    """An operand as numpy sees it."""

    name: str
    rows: np.ndarray  # [rows at the limits, *shape of a row]
    per_logit_row: bool

    def of(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Those of the step."""
        return self.rows[: len(batch["logit_rows" if self.per_logit_row else "positions"])]


@dataclass(frozen=True)
class Segment:
    session: object
    inputs: list[Rows]
    batch_inputs: tuple[str, ...]
    outputs: list[Rows]

    def run(self, batch: dict[str, np.ndarray]) -> None:
        feeds = {operand.name: np.ascontiguousarray(operand.of(batch)) for operand in self.inputs}
        feeds |= {name: batch[name] for name in self.batch_inputs}
        results = self.session.run([operand.name for operand in self.outputs], feeds)
        for operand, result in zip(self.outputs, results, strict=True):
            operand.of(batch)[:] = result


class Segments:
    """Sessions of all segment steps. `threads`: as many as the team has."""

    def __init__(self, manifest: Manifest, directory: pathlib.Path, threads: int):
        self.manifest, self.directory, self.threads = manifest, directory, threads
        self.sessions: dict[str, object] = {}
        self.by_step: dict[int, Segment] = {}

    def bind(self, arena: np.ndarray) -> None:
        """arena: the executor's, u8. Called once, before the first step."""
        for number, step in enumerate(self.manifest.plan.steps):
            if step.segment is not None:
                self.by_step[number] = self._segment(arena, step)

    def run(self, step: int, input_ids: np.ndarray, positions: np.ndarray, logit_rows: np.ndarray) -> None:
        self.by_step[step].run({"input_ids": input_ids, "positions": positions, "logit_rows": logit_rows})

    def _segment(self, arena: np.ndarray, step: Step) -> Segment:
        session = self._session(step.segment)
        inputs, outputs, split = session.get_inputs(), session.get_outputs(), len(step.inputs)
        if tuple(value.name for value in inputs[split:]) != step.batch_inputs or len(outputs) != len(step.outputs):
            found = f"({', '.join(value.name for value in inputs)}) -> {len(outputs)} values"
            raise EngineError(f"segments/{step.segment}", found, f"{split} inputs, {step.batch_inputs}, {len(step.outputs)} outputs")
        pairs = zip((*inputs, *outputs), (*step.inputs, *step.batch_inputs, *step.outputs))
        rows = [self._rows(arena, value, operand, step.segment) for value, operand in pairs if isinstance(operand, Operand)]
        return Segment(session, rows[:split], step.batch_inputs, rows[split:])

    def _session(self, file: str):
        if file not in self.sessions:
            import onnxruntime  # only engines with segments need it

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.log_severity_level = 3
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the team's threads spin already
            path = str(self.directory / "segments" / file)
            self.sessions[file] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return self.sessions[file]

    def _rows(self, arena: np.ndarray, value, operand: Operand, file: str) -> Rows:
        buffer, limits = self.manifest.plan.buffers[operand.buffer], self.manifest.limits
        dtype, per_logit_row = np.dtype(DTYPES[buffer.dtype]), buffer.size.per_token == 0
        num_rows, shape = limits.max_logit_rows if per_logit_row else limits.max_batch_tokens, value.shape[1:]
        is_fixed = value.shape and all(isinstance(extent, int) for extent in shape)
        row_bytes = math.prod(shape) * dtype.itemsize if is_fixed else None
        if row_bytes is None or operand.offset + row_bytes > operand.row_bytes:
            raise EngineError(f"segments/{file}: {value.name}", f"shape {value.shape}", f"rows within {operand.row_bytes} bytes")
        start = buffer.offset + operand.offset
        flat = arena[start : start + (num_rows - 1) * operand.row_bytes + row_bytes]
        strides = (operand.row_bytes, *(math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))))
        return Rows(value.name, np.ndarray((num_rows, *shape), dtype, flat.data, 0, strides), per_logit_row)
