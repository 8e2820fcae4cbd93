"""Checks every name, index and range of a manifest before anything is mapped or called."""

from __future__ import annotations

import pathlib
import re

from slipway.runtime.errors import EngineError
from slipway.runtime.manifest import GPU_KINDS, Buffer, Launch, Limits, Manifest, Matmul, Needs, Operand, Plan, Step

DTYPE_BYTES = {"bf16": 2, "f32": 4, "i32": 4, "i64": 8, "bool": 1}
MOST = 1 << 30  # of anything counted: sums of two still fit the native side's int32
LINE = 64  # bytes; rows and outputs start at a multiple
MOST_THREADS, MOST_SHARED_BYTES = 1024, 232_448  # of a block on any GPU
MOST_OF_GRID = (1 << 31) - 1, 65535, 65535
MOST_OPERANDS = {"inputs": 4, "outputs": 2, "weights": 6}  # slipway::cuda::Call
MOST_COUNTERS = 1 << 20
GPU_INPUT_ALIGNMENT = MATMUL_ALIGNMENT = 16
MATMUL_FACTORS, MATMUL_RESULTS = {"bf16": 16, "e4m3": 8, "e2m1": 4}, {"bf16": 16, "f32": 32}  # bits of a number
SCALED_ROWS, SCALED_NUMBERS = 128, 64  # of e2m1, in a piece of scales
SCALE_NUMBERS = 16  # that share one
BATCH_INPUTS = ("input_ids", "positions", "logit_rows")
SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DAMAGED = "the engine is damaged: copy or build it again"


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raises EngineError for the first thing that cannot be so."""
    for name in manifest.files:
        _check_name(name, f"{where}.files")
    for section in ("cpu", "precision", "limits"):
        if not isinstance(manifest.recipe.get(section, {}), dict):
            raise EngineError(f"{where}.recipe.{section}", f"found {type(manifest.recipe[section]).__name__}", "a mapping")
    if manifest.target.kind not in ("cpu", *GPU_KINDS):
        raise EngineError(f"{where}.target.kind", repr(manifest.target.kind), f"cpu, {', '.join(GPU_KINDS)}")
    _check_counts(manifest, where)
    _check_plan(manifest, f"{where}.plan")
    tokenizer = manifest.tokenizer
    if tokenizer:
        for name in ("tokenizer.json", "vocabulary.bin"):
            _check_listed(manifest, f"tokenizer/{name}", f"{where}.tokenizer")
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


def _check_count(where: str, **values: int) -> None:
    for name, value in values.items():
        if not 1 <= value <= MOST:
            raise EngineError(f"{where}.{name}", f"{value}", "1..2^30")


def _check_counts(manifest: Manifest, where: str) -> None:
    limits, plan, kv = manifest.limits, manifest.plan, manifest.plan.kv
    _check_count(f"{where}.limits", **vars(limits))
    _check_at_least(2, f"{where}.limits", max_sequence_length=limits.max_sequence_length)
    if not limits.max_sequences <= min(limits.max_batch_tokens, limits.max_logit_rows):
        raise EngineError(f"{where}.limits.max_sequences", f"{limits.max_sequences}", "at most max_batch_tokens and max_logit_rows")
    _check_count(f"{where}.plan", vocab_size=plan.vocab_size)
    _check_at_least(1, f"{where}.plan", arena_bytes=plan.arena_bytes)
    _check_at_least(
        0,
        f"{where}.plan",
        shared_scratch_bytes=plan.shared_scratch_bytes,
        local_scratch_bytes=plan.local_scratch_bytes,
    )
    if kv.layers:
        _check_count(f"{where}.plan.kv", layers=kv.layers)
    _check_count(f"{where}.plan.kv", block_size=kv.block_size, num_blocks=kv.num_blocks)
    _check_at_least(1, f"{where}.plan.kv", block_bytes=kv.block_bytes)
    if kv.num_blocks * kv.block_size < limits.max_sequence_length:
        found = f"{kv.num_blocks} of {kv.block_size} tokens"
        raise EngineError(f"{where}.plan.kv.num_blocks", found, f"room for max_sequence_length, {limits.max_sequence_length}")


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
    for symbol, needs in plan.kernels.items():
        _check_plan_gives(needs, manifest, f"{where}.kernels.{symbol}")
        _check_launches(needs, manifest, f"{where}.kernels.{symbol}")
    for i, step in enumerate(plan.steps):
        _check_step(step, manifest, f"{where}.steps[{i}]")
    _check_operand(plan.logits, plan, limits, f"{where}.logits")
    if plan.logits.row_bytes < 4 * plan.vocab_size or plan.buffers[plan.logits.buffer].dtype != "f32":
        raise EngineError(f"{where}.logits", f"rows of {plan.logits.row_bytes} bytes", f"{plan.vocab_size} f32")
    _check_rows(plan.logits, 4 * plan.vocab_size, "logit_rows", manifest, f"{where}.logits")
    if plan.drawn:
        _check_operand(plan.drawn, plan, limits, f"{where}.drawn")
        if not manifest.target.is_gpu or plan.buffers[plan.drawn.buffer].dtype != "i32":
            raise EngineError(f"{where}.drawn", f"{plan.buffers[plan.drawn.buffer].dtype} for {manifest.target.kind}", "i32, for a GPU")
        _check_rows(plan.drawn, 4, "logit_rows", manifest, f"{where}.drawn")


def _check_buffer(buffer: Buffer, plan: Plan, limits: Limits, where: str) -> None:
    if buffer.dtype not in DTYPE_BYTES:
        raise EngineError(f"{where}.dtype", repr(buffer.dtype), f"one of {', '.join(DTYPE_BYTES)}")
    _check_at_least(0, where, offset=buffer.offset, **vars(buffer.size))
    if buffer.offset % 64:
        raise EngineError(f"{where}.offset", f"{buffer.offset}", "a multiple of 64")
    end = buffer.offset + buffer.size.at(limits.max_batch_tokens, limits.max_logit_rows)
    if end > plan.arena_bytes:
        raise EngineError(where, f"ends at {end}", f"at most arena_bytes, {plan.arena_bytes}")


def _check_plan_gives(needs: Needs, manifest: Manifest, where: str) -> None:
    """What a kernel needs of the plan as a whole."""
    plan, limits = manifest.plan, manifest.limits
    shared = needs.shared_scratch.at(limits.max_batch_tokens, limits.max_logit_rows)
    for name, given, needed in (
        ("shared_scratch_bytes", plan.shared_scratch_bytes, shared),
        ("local_scratch_bytes", plan.local_scratch_bytes, needs.local_scratch_bytes),
    ):
        if given < needed:
            raise EngineError(where, f"{name} {given}", f"{needed}, which the kernel needs")
    for name, given, rows in (
        ("vocab_size", plan.vocab_size, needs.token_ids),
        ("max_sequence_length", limits.max_sequence_length, needs.positions),
    ):
        if rows is not None and given > rows:
            raise EngineError(where, f"{name} {given}", f"at most {rows}, which the kernel's table holds")
    if needs.kv_block_size and (plan.kv.block_size, plan.kv.block_bytes) != (needs.kv_block_size, needs.kv_block_bytes):
        found = f"KV blocks of {plan.kv.block_size} tokens in {plan.kv.block_bytes} bytes"
        raise EngineError(where, found, f"{needs.kv_block_size} in {needs.kv_block_bytes}, which the kernel needs")


def _check_launches(needs: Needs, manifest: Manifest, where: str) -> None:
    if (needs.image is not None) != manifest.target.is_gpu:
        raise EngineError(f"{where}.image", repr(needs.image), f"{'a file below kernels/' if manifest.target.is_gpu else 'none'}, as for {manifest.target.kind}")
    if needs.image is None:
        return
    _check_listed(manifest, f"kernels/{needs.image}", f"{where}.image")
    if not 0 <= needs.counters <= MOST_COUNTERS:
        raise EngineError(f"{where}.counters", f"{needs.counters}", f"0..{MOST_COUNTERS}")
    for name, most in MOST_OPERANDS.items():
        if len(getattr(needs, name)) > most:
            raise EngineError(f"{where}.{name}", f"{len(getattr(needs, name))} of them", f"at most {most}")
    for i, launch in enumerate(needs.launches):
        _check_range(launch, f"{where}.launches[{i}]")
        if launch.matmul:
            _check_matmul(launch.matmul, needs, manifest.limits, f"{where}.launches[{i}].matmul")
        else:
            _check_launch(launch, manifest.limits, f"{where}.launches[{i}]")
    most = max(manifest.limits.max_batch_tokens, manifest.limits.max_logit_rows)
    for rows in (*(1 << power for power in range(most.bit_length())), manifest.limits.max_batch_tokens, manifest.limits.max_logit_rows):
        always = [x for x in needs.launches if (x.min_new_tokens, x.min_sequences, x.max_sequences) == (1, 1, None)]
        if not any(x.min_rows <= rows <= (x.max_rows or rows) for x in always):
            raise EngineError(f"{where}.launches", f"none for {rows} rows", "one for every number of rows")


def _check_range(launch: Launch, where: str) -> None:
    _check_count(where, min_rows=launch.min_rows, max_rows=launch.max_rows or MOST, min_new_tokens=launch.min_new_tokens,
                 min_sequences=launch.min_sequences, max_sequences=launch.max_sequences or MOST)


def _check_matmul(matmul: Matmul, needs: Needs, limits: Limits, where: str) -> None:
    """Every number that is multiplied or written lies in the weight, the scratch and the operands that the kernel has."""
    for name, known in (("factors", MATMUL_FACTORS), ("results", MATMUL_RESULTS)):
        if getattr(matmul, name) not in known:
            raise EngineError(f"{where}.{name}", repr(getattr(matmul, name)), f"one of {', '.join(known)}")
    _check_count(where, outputs=matmul.outputs, inputs=matmul.inputs, weight_columns=matmul.weight_columns)
    _check_at_least(0, where, weight=matmul.weight)
    if needs.gathers:
        raise EngineError(where, "a multiplication by cuBLASLt in a step that gathers rows", "one whose inputs have the rows of its outputs")
    most, scales = max(limits.max_batch_tokens, limits.max_logit_rows), 0
    factor, scratch = MATMUL_FACTORS[matmul.factors], needs.shared_scratch.at(limits.max_batch_tokens, limits.max_logit_rows)
    held = needs.weights[matmul.weight] if matmul.weight < len(needs.weights) else 0
    if matmul.factors == "e2m1":
        if matmul.inputs % SCALED_NUMBERS or matmul.inputs != matmul.weight_columns or matmul.source is None:
            raise EngineError(where, f"{matmul.inputs} of {matmul.weight_columns} numbers in a row", f"whole rows of e2m1 in the scratch, multiples of {SCALED_NUMBERS}")
        held -= _scale_bytes(matmul.outputs, matmul.inputs)
        scales = _scale_bytes(most, matmul.inputs)
    if matmul.inputs > matmul.weight_columns or matmul.outputs * matmul.weight_columns * factor > 8 * held:
        raise EngineError(where, f"{matmul.outputs} x {matmul.inputs} in rows of {matmul.weight_columns}", "a matrix within the kernel's weight")
    results = matmul.outputs * MATMUL_RESULTS[matmul.results] // 8
    operands = [("source", matmul.source, matmul.inputs * factor // 8, needs.inputs[:1]), ("destination", matmul.destination, results, needs.outputs[:1])]
    if matmul.adds:
        operands.append(("adds", None, results, needs.inputs[1:2]))
    for name, rows, width, given in operands:
        if rows is None:
            if not given or given[0] < width:
                raise EngineError(f"{where}.{name}", f"rows of {width} bytes", f"at most the {sum(given)} that the kernel is given")
            continue
        _check_at_least(0, f"{where}.{name}", offset=rows.offset)
        _check_count(f"{where}.{name}", row_bytes=rows.row_bytes)
        end = rows.offset + (most - 1) * rows.row_bytes + (rows.row_bytes + scales if scales and name == "source" else width)
        if rows.row_bytes < width or rows.offset % MATMUL_ALIGNMENT or rows.row_bytes % MATMUL_ALIGNMENT or end > scratch:
            raise EngineError(f"{where}.{name}", f"{rows.row_bytes} bytes a row from {rows.offset} on", f"rows of {width} bytes within {scratch} of scratch")


def _scale_bytes(rows: int, columns: int) -> int:
    """Of e2m1 numbers."""
    return -(-rows // SCALED_ROWS) * SCALED_ROWS * columns // SCALE_NUMBERS


def _check_launch(launch: Launch, limits: Limits, where: str) -> None:
    if not SYMBOL.fullmatch(launch.function):
        raise EngineError(f"{where}.function", repr(launch.function), "a C identifier")
    if not (1 <= launch.threads <= MOST_THREADS and launch.threads % 32 == 0):
        raise EngineError(f"{where}.threads", f"{launch.threads}", f"whole warps, at most {MOST_THREADS}")
    if not 0 <= launch.shared_bytes <= MOST_SHARED_BYTES:
        raise EngineError(f"{where}.shared_bytes", f"{launch.shared_bytes}", f"0..{MOST_SHARED_BYTES}")
    if len(launch.grid) != 3:
        raise EngineError(f"{where}.grid", f"{len(launch.grid)} extents", "three")
    rows = max(limits.max_batch_tokens, limits.max_logit_rows)
    counts = {"rows": rows, "tokens": limits.max_batch_tokens, "sequences": limits.max_sequences, None: 0}
    for extent, blocks in zip(launch.grid, MOST_OF_GRID):
        if extent.of not in counts:
            raise EngineError(f"{where}.grid", repr(extent.of), '"rows", "tokens", "sequences" or none')
        _check_count(f"{where}.grid", times=extent.times, per=extent.per)
        _check_at_least(0, f"{where}.grid", fixed=extent.fixed)
        found = extent.fixed - (-extent.times * counts[extent.of] // extent.per) + extent.each_sequence * limits.max_sequences
        if not 1 <= found <= blocks:
            raise EngineError(f"{where}.grid", f"{found} blocks", f"1..{blocks}")


def _check_step(step: Step, manifest: Manifest, where: str) -> None:
    plan = manifest.plan
    if step.rows not in ("tokens", "logit_rows"):
        raise EngineError(f"{where}.rows", repr(step.rows), '"tokens" or "logit_rows"')
    if (step.symbol is None) == (step.segment is None):
        raise EngineError(where, "not exactly one of symbol and segment")
    for weight in step.weights:
        _check_index(weight, len(plan.weights), f"{where}.weights")
    if step.kv_layer is not None:
        _check_index(step.kv_layer, plan.kv.layers, f"{where}.kv_layer")
    for kind in ("inputs", "outputs"):
        for i, operand in enumerate(getattr(step, kind)):
            _check_operand(operand, plan, manifest.limits, f"{where}.{kind}[{i}]")
    if step.symbol is not None:
        _check_kernel_step(step, manifest, where)
    else:
        _check_segment_step(step, manifest, where)


def _check_kernel_step(step: Step, manifest: Manifest, where: str) -> None:
    """The step gives its kernel what that needs."""
    plan = manifest.plan
    if not SYMBOL.fullmatch(step.symbol):
        raise EngineError(f"{where}.symbol", repr(step.symbol), "a C identifier")
    if step.batch_inputs:
        raise EngineError(f"{where}.batch_inputs", f"{list(step.batch_inputs)}", "none: kernels see the whole batch")
    if step.symbol not in plan.kernels:
        raise EngineError(f"{where}.symbol", repr(step.symbol), "one of plan.kernels", DAMAGED)
    needs = plan.kernels[step.symbol]
    if (weights := tuple(plan.weights[weight].bytes for weight in step.weights)) != needs.weights:
        raise EngineError(f"{where}.weights", f"of {list(weights)} bytes", f"{list(needs.weights)}, which the kernel needs")
    if needs.kv_block_size and step.kv_layer is None:
        raise EngineError(f"{where}.kv_layer", "none", "a layer, which the kernel needs")
    for kind in ("inputs", "outputs"):
        operands, sizes = getattr(step, kind), getattr(needs, kind)
        if len(operands) != len(sizes):
            raise EngineError(f"{where}.{kind}", f"{len(operands)} of them", f"{len(sizes)}, which the kernel needs")
        rows = "tokens" if kind == "inputs" and needs.gathers else step.rows
        for i, (operand, width) in enumerate(zip(operands, sizes, strict=True)):
            _check_rows(operand, width, rows, manifest, f"{where}.{kind}[{i}]")
    for i, operand in enumerate(step.inputs):
        if manifest.target.is_gpu and operand.offset % GPU_INPUT_ALIGNMENT:
            raise EngineError(f"{where}.inputs[{i}].offset", f"{operand.offset}", f"a multiple of {GPU_INPUT_ALIGNMENT}")
    for i, operand in enumerate(step.outputs):
        if operand.offset % LINE:
            raise EngineError(f"{where}.outputs[{i}].offset", f"{operand.offset}", "a multiple of 64")


def _check_segment_step(step: Step, manifest: Manifest, where: str) -> None:
    if manifest.target.is_gpu:
        raise EngineError(where, "a segment", f"kernels alone, as for {manifest.target.kind}")
    _check_listed(manifest, f"segments/{step.segment}", f"{where}.segment")
    for name in step.batch_inputs:
        if name not in BATCH_INPUTS:
            raise EngineError(f"{where}.batch_inputs", repr(name), f"one of {', '.join(BATCH_INPUTS)}")
    for kind in ("inputs", "outputs"):
        for i, operand in enumerate(getattr(step, kind)):
            if manifest.plan.buffers[operand.buffer].dtype == "bf16":
                raise EngineError(f"{where}.{kind}[{i}]", "a bf16 operand of a segment", "f32, i32, i64 or bool")


def _check_operand(operand: Operand, plan: Plan, limits: Limits, where: str) -> None:
    """The first byte of every row lies in the buffer."""
    _check_index(operand.buffer, len(plan.buffers), f"{where}.buffer")
    _check_at_least(0, where, offset=operand.offset)
    _check_count(where, row_bytes=operand.row_bytes)
    buffer = plan.buffers[operand.buffer]
    if operand.row_bytes % LINE or operand.offset % DTYPE_BYTES[buffer.dtype]:
        raise EngineError(where, f"offset {operand.offset}, rows of {operand.row_bytes} bytes", f"whole {buffer.dtype}, rows a multiple of 64")
    rows = limits.max_batch_tokens if buffer.size.per_token else limits.max_logit_rows if buffer.size.per_logit_row else 1
    last = operand.offset + (rows - 1) * operand.row_bytes
    if last >= buffer.size.at(limits.max_batch_tokens, limits.max_logit_rows):
        raise EngineError(where, f"last row at byte {last}", "inside its buffer")


def _check_rows(operand: Operand, width: int, rows: str, manifest: Manifest, where: str) -> None:
    """Every byte that is touched, `width` of each row, lies in the buffer, and rows do not overlap."""
    limits, buffer = manifest.limits, manifest.plan.buffers[operand.buffer].size
    if operand.row_bytes < width:
        raise EngineError(where, f"rows of {operand.row_bytes} bytes", f"at least {width}, which are touched")
    if not (buffer.per_token if rows == "tokens" else buffer.per_logit_row):
        raise EngineError(where, "a buffer of other rows", f"one of {rows}")
    count = limits.max_batch_tokens if rows == "tokens" else limits.max_logit_rows
    end, size = operand.offset + (count - 1) * operand.row_bytes + width, buffer.at(limits.max_batch_tokens, limits.max_logit_rows)
    if end > size:
        raise EngineError(where, f"ends at byte {end}", f"at most {size}, where its buffer ends")
