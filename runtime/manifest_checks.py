"""Checks every name, index and range of a manifest before anything is mapped or called."""

from __future__ import annotations

import pathlib
import re

from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import Buffer, Limits, Manifest, Operand, Plan, Step

DTYPE_BYTES = {"bf16": 2, "f32": 4, "i32": 4, "i64": 8}
SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DAMAGED = "the engine is damaged: copy or build it again"


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises EngineError for the first thing that cannot be so."""
    for name in manifest.files:
        _check_name(name, f"{where}.files")
    _check_counts(manifest, where)
    _check_plan(manifest, f"{where}.plan")
    tokenizer = manifest.tokenizer
    if tokenizer:
        _check_listed(manifest, "tokenizer/tokenizer.json", f"{where}.tokenizer")
        if tokenizer.has_chat_template:
            _check_listed(manifest, "tokenizer/chat_template.jinja", f"{where}.tokenizer")
        for token in tokenizer.eos_token_ids:
            _check_index(token, manifest.plan.vocab_size, f"{where}.tokenizer.eos_token_ids")


def check_files(manifest: Manifest, directory: pathlib.Path) -> None:
    """Raises EngineError for a listed file that is missing or of another length."""
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise EngineError(str(path), "no such file", f"{entry.bytes} bytes", DAMAGED)
        found = path.stat().st_size
        if found != entry.bytes:
            raise EngineError(str(path), f"{found} bytes", f"{entry.bytes}", DAMAGED)


def _check_name(name: str, where: str) -> None:
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise EngineError(where, f"file name {name!r}", "a relative path that stays inside the engine directory")


def _check_listed(manifest: Manifest, name: str, where: str) -> None:
    _check_name(name, where)
    if name not in manifest.files:
        raise EngineError(where, f"{name!r} is not among the files", hint=DAMAGED)


def _check_index(index: int, count: int, where: str) -> None:
    if not 0 <= index < count:
        raise EngineError(where, f"index {index}", f"0..{count - 1}")


def _check_at_least(least: int, where: str, **values: int) -> None:
    for name, value in values.items():
        if not least <= value < 1 << 62:
            raise EngineError(f"{where}.{name}", f"{value}", f"at least {least}")


def _check_counts(manifest: Manifest, where: str) -> None:
    limits, plan, kv = manifest.limits, manifest.plan, manifest.plan.kv
    _check_at_least(1, f"{where}.limits", **vars(limits))
    for name, value in vars(limits).items():
        if value > 1 << 30:
            raise EngineError(f"{where}.limits.{name}", f"{value}", "at most 2^30")
    _check_at_least(1, f"{where}.plan", arena_bytes=plan.arena_bytes, vocab_size=plan.vocab_size)
    _check_at_least(
        0,
        f"{where}.plan",
        shared_scratch_bytes=plan.shared_scratch_bytes,
        local_scratch_bytes=plan.local_scratch_bytes,
    )
    _check_at_least(0, f"{where}.plan.kv", layers=kv.layers)
    _check_at_least(1, f"{where}.plan.kv", block_size=kv.block_size, block_bytes=kv.block_bytes, num_blocks=kv.num_blocks)


def _check_plan(manifest: Manifest, where: str) -> None:
    plan, limits = manifest.plan, manifest.limits
    for i, buffer in enumerate(plan.buffers):
        _check_buffer(buffer, plan, limits, f"{where}.buffers[{i}]")
    for i, weight in enumerate(plan.weights):
        name = f"weights/{weight.file}"
        _check_listed(manifest, name, f"{where}.weights[{i}]")
        if manifest.files[name].bytes != weight.bytes:
            raise EngineError(f"{where}.weights[{i}]", f"{weight.bytes} bytes", f"{manifest.files[name].bytes} as in {name}")
    if any(step.symbol for step in plan.steps):
        _check_listed(manifest, f"kernels/{plan.library}", f"{where}.library")
    for i, step in enumerate(plan.steps):
        _check_step(step, manifest, f"{where}.steps[{i}]")
    _check_operand(plan.logits, plan, limits, f"{where}.logits")
    if plan.logits.row_bytes < 4 * plan.vocab_size or plan.buffers[plan.logits.buffer].dtype != "f32":
        raise EngineError(f"{where}.logits", f"rows of {plan.logits.row_bytes} bytes", f"{plan.vocab_size} f32")


def _check_buffer(buffer: Buffer, plan: Plan, limits: Limits, where: str) -> None:
    if buffer.dtype not in DTYPE_BYTES:
        raise EngineError(f"{where}.dtype", repr(buffer.dtype), f"one of {', '.join(DTYPE_BYTES)}")
    _check_at_least(0, where, offset=buffer.offset, **vars(buffer.size))
    if buffer.offset % 64:
        raise EngineError(f"{where}.offset", f"{buffer.offset}", "a multiple of 64")
    end = buffer.offset + buffer.size.at(limits.max_batch_tokens, limits.max_logit_rows)
    if end > plan.arena_bytes:
        raise EngineError(where, f"ends at {end}", f"at most arena_bytes, {plan.arena_bytes}")


def _check_step(step: Step, manifest: Manifest, where: str) -> None:
    plan = manifest.plan
    if step.rows not in ("tokens", "logit_rows"):
        raise EngineError(f"{where}.rows", repr(step.rows), '"tokens" or "logit_rows"')
    if (step.symbol is None) == (step.segment is None):
        raise EngineError(where, "not exactly one of symbol and segment")
    if step.symbol is not None and not SYMBOL.fullmatch(step.symbol):
        raise EngineError(f"{where}.symbol", repr(step.symbol), "a C identifier")
    if step.segment is not None:
        _check_listed(manifest, f"segments/{step.segment}", f"{where}.segment")
    for weight in step.weights:
        _check_index(weight, len(plan.weights), f"{where}.weights")
    if step.kv_layer is not None:
        _check_index(step.kv_layer, plan.kv.layers, f"{where}.kv_layer")
    for kind in ("inputs", "outputs"):
        for i, operand in enumerate(getattr(step, kind)):
            _check_operand(operand, plan, manifest.limits, f"{where}.{kind}[{i}]")
            if step.segment is not None and plan.buffers[operand.buffer].dtype == "bf16":
                raise EngineError(f"{where}.{kind}[{i}]", "a bf16 operand of a segment", "f32, i32 or i64")


def _check_operand(operand: Operand, plan: Plan, limits: Limits, where: str) -> None:
    _check_index(operand.buffer, len(plan.buffers), f"{where}.buffer")
    _check_at_least(0, where, offset=operand.offset, row_bytes=operand.row_bytes)
    size = plan.buffers[operand.buffer].size
    rows = limits.max_batch_tokens if size.per_token else limits.max_logit_rows if size.per_logit_row else 1
    last = operand.offset + (rows - 1) * operand.row_bytes
    if last >= size.at(limits.max_batch_tokens, limits.max_logit_rows):
        raise EngineError(where, f"last row at byte {last}", "inside its buffer")
