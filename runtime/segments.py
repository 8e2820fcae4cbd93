"""Runs the ONNX segments of a plan: the executor calls `run` on its first thread, between kernel steps.

An operand of a segment is an f32, i32 or i64 matrix in the arena; how many columns it has, the ONNX file says.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import numpy as np

from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Manifest, Operand

DTYPES = {"f32": np.float32, "i32": np.int32, "i64": np.int64}


@dataclass(frozen=True)
class Matrix:
    """An operand as numpy sees it: rows are cut to those of the step."""

    name: str
    rows: np.ndarray  # [rows at the limits, columns]
    per_logit_row: bool


@dataclass(frozen=True)
class Segment:
    session: object
    inputs: list[Matrix]
    outputs: list[Matrix]

    def run(self, num_tokens: int, num_logit_rows: int) -> None:
        def cut(matrix: Matrix) -> np.ndarray:
            return matrix.rows[: num_logit_rows if matrix.per_logit_row else num_tokens]

        feeds = {matrix.name: np.ascontiguousarray(cut(matrix)) for matrix in self.inputs}
        results = self.session.run([matrix.name for matrix in self.outputs], feeds)
        for matrix, result in zip(self.outputs, results, strict=True):
            cut(matrix)[:] = result


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
                session = self._session(step.segment)
                inputs = self._matrices(arena, session.get_inputs(), step.inputs, step.segment)
                outputs = self._matrices(arena, session.get_outputs(), step.outputs, step.segment)
                self.by_step[number] = Segment(session, inputs, outputs)

    def run(self, step: int, num_tokens: int, num_logit_rows: int) -> None:
        self.by_step[step].run(num_tokens, num_logit_rows)

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

    def _matrices(self, arena: np.ndarray, values: list, operands: tuple[Operand, ...], file: str) -> list[Matrix]:
        if len(values) != len(operands):
            raise EngineError(f"segments/{file}", f"{len(values)} values", f"{len(operands)} as the plan's step has")
        return [self._matrix(arena, value, operand, file) for value, operand in zip(values, operands)]

    def _matrix(self, arena: np.ndarray, value, operand: Operand, file: str) -> Matrix:
        buffer = self.manifest.plan.buffers[operand.buffer]
        dtype = np.dtype(DTYPES[buffer.dtype])
        per_logit_row = buffer.size.per_token == 0
        limits = self.manifest.limits
        num_rows = limits.max_logit_rows if per_logit_row else limits.max_batch_tokens
        num_columns = value.shape[-1]
        if len(value.shape) != 2 or not isinstance(num_columns, int) or operand.offset + num_columns * dtype.itemsize > operand.row_bytes:
            raise EngineError(f"segments/{file}: {value.name}", f"shape {value.shape}", f"[rows, columns] within {operand.row_bytes} bytes a row")
        start = buffer.offset + operand.offset
        bytes_end = start + (num_rows - 1) * operand.row_bytes + num_columns * dtype.itemsize
        flat = arena[start:bytes_end]
        rows = np.ndarray((num_rows, num_columns), dtype, flat.data, 0, (operand.row_bytes, dtype.itemsize))
        return Matrix(value.name, rows, per_logit_row)
