"""Reads, checks and writes engine.json: everything the runtime knows of an engine directory.

`files` lists every other file of the directory by its path in it ("weights/ab12.bin"). `WeightRef.file`, `Plan.library` and
`Step.segment` are names below weights/, kernels/ and segments/. The file carries a checksum of its own contents.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass, field

import xxhash

from slipway.runtime.errors import EngineError
from slipway.runtime.typed_json import from_json, to_json

FORMAT_VERSION = 7
ABI_VERSION = 1  # slipway::abi_version of abi.hpp
FILE_NAME = "engine.json"
GPU_KINDS = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")


@dataclass(frozen=True)
class Size:
    """Bytes: fixed + per_token * num_tokens + per_logit_row * num_logit_rows."""

    fixed: int = 0
    per_token: int = 0
    per_logit_row: int = 0

    def at(self, tokens: int, logit_rows: int) -> int:
        return self.fixed + self.per_token * tokens + self.per_logit_row * logit_rows


@dataclass(frozen=True)
class Operand:
    """A column range of a buffer: row r starts at buffer + offset + r * row_bytes."""

    buffer: int
    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Buffer:
    """A range of the arena. `offset` is laid out at the limits; `size` is what a step uses of it."""

    name: str
    dtype: str  # "bf16", "f32", "i32", "i64", "bool"
    offset: int
    size: Size


@dataclass(frozen=True)
class WeightRef:
    """Packed bytes: a file below weights/, whole."""

    name: str
    file: str
    bytes: int


@dataclass(frozen=True)
class Step:
    """One call: of a kernel (`symbol` in kernels/<library>) or of an ONNX segment (`segment`, a file below segments/).

    batch_inputs: arrays of the batch that a segment reads, by its own names for them, behind its inputs.
    """

    name: str
    op: str
    rows: str  # "tokens" or "logit_rows"
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    weights: tuple[int, ...]
    symbol: str | None = None
    segment: str | None = None
    batch_inputs: tuple[str, ...] = ()
    kv_layer: int | None = None
    cost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Extent:
    """Blocks along one dimension of a grid: fixed + ceil(times * count / per), and one a sequence if each_sequence. of: what is counted of
    a step, None: nothing.
    """

    of: str | None  # "rows", "tokens", "sequences"
    times: int
    per: int
    fixed: int
    each_sequence: bool = False


@dataclass(frozen=True)
class ScratchRows:
    """Rows of numbers in the scratch: the first begins at `offset`, each `row_bytes` behind the one before."""

    offset: int
    row_bytes: int


@dataclass(frozen=True)
class Matmul:
    """results[rows, outputs] = factors[rows, inputs] W[outputs, inputs]ᵀ by cuBLASLt. W: the step's weight of that number, its rows `weight_columns`
    numbers apart. source, destination: None for the step's first input, its first output. adds: results += the step's second input. Where scales of e2m1 lie: plugins/plugin.py.
    """

    outputs: int
    inputs: int
    weight_columns: int
    factors: str  # "bf16", "e4m3", "e2m1"
    results: str  # "bf16", "f32"
    source: ScratchRows | None = None
    destination: ScratchRows | None = None
    weight: int = 0
    adds: bool = False


@dataclass(frozen=True)
class Launch:
    """One launch of a CUDA function, or with `matmul` of cuBLASLt's (which has no threads).

    In graphs for min_rows to max_rows rows and min_sequences to max_sequences sequences (None: any number), for steps in which some sequence has
    at least min_new_tokens tokens.
    """

    function: str
    threads: int
    grid: tuple[Extent, ...]  # three
    shared_bytes: int
    min_rows: int
    max_rows: int | None
    min_new_tokens: int
    min_sequences: int = 1
    max_sequences: int | None = None
    matmul: Matmul | None = None


@dataclass(frozen=True)
class Needs:
    """What a kernel was compiled to take for granted; the steps that call it must give it all of that.

    inputs, outputs: bytes it touches of a row. weights: bytes of each. gathers: it picks rows of tokens for its logit rows.
    token_ids, positions: it has table rows for those below. kv_block_size, kv_block_bytes: of the cache it was compiled for.
    0 or None: it does without.

    image, launches, counters: of a GPU's kernel, its code (kernels/<image>), how it is launched, and the 32-bit words it wants at zero.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...]
    gathers: bool = False
    shared_scratch: Size = field(default_factory=Size)
    local_scratch_bytes: int = 0
    token_ids: int | None = None
    positions: int | None = None
    kv_block_size: int = 0
    kv_block_bytes: int = 0
    image: str | None = None
    launches: tuple[Launch, ...] = ()
    counters: int = 0


@dataclass(frozen=True)
class KvCache:
    """Blocks of block_size tokens; a layer's blocks are contiguous: [layers][num_blocks][block_bytes]."""

    layers: int
    block_size: int
    block_bytes: int  # of one layer: K and V of every KV head
    num_blocks: int  # default, at most so many with kv_cache_tokens: auto; the runtime may be told to use another number

    def blocks_within(self, free_bytes: int, limits: Limits) -> int:
        """What `auto` gives: num_blocks, or as many as half of the memory holds, but one sequence of full length in any case."""
        fitting = free_bytes // 2 // max(1, self.layers * self.block_bytes)
        return max(-(-limits.max_sequence_length // self.block_size), min(self.num_blocks, fitting))


@dataclass(frozen=True)
class Limits:
    max_sequence_length: int
    max_batch_tokens: int
    max_sequences: int
    max_logit_rows: int


@dataclass(frozen=True)
class Plan:
    arena_bytes: int
    shared_scratch_bytes: int
    local_scratch_bytes: int
    vocab_size: int
    logits: Operand  # f32 [num_logit_rows, vocab_size]
    library: str  # kernels/<name>: kernels of a CPU; those of a GPU for its emulation
    buffers: tuple[Buffer, ...]
    weights: tuple[WeightRef, ...]
    kernels: dict[str, Needs]  # by symbol
    steps: tuple[Step, ...]
    kv: KvCache
    drawn: Operand | None = None  # i32 [num_logit_rows]: the tokens that the plan draws, on a GPU


@dataclass(frozen=True)
class Target:
    """kind: "cpu" or "sm90" and the like. isa: its name, for messages. cpu_flags: what /proc/cpuinfo must list; for a GPU, to emulate it."""

    kind: str
    isa: str
    cpu_flags: tuple[str, ...]

    @property
    def is_gpu(self) -> bool:
        return self.kind in GPU_KINDS

    @property
    def begins_early(self) -> bool:
        """Whether its kernels may begin before the one before has ended: programmatic dependent launch, from sm90 on."""
        return self.is_gpu and int(self.kind.removeprefix("sm")) >= 90


@dataclass(frozen=True)
class Tokenizer:
    """tokenizer/: tokenizer.json, vocabulary.bin and, if `has_chat_template`, chat_template.jinja.

    special_tokens: what a chat template may name ("bos_token": "<s>"). add_special_tokens: a plain prompt gets what the
    tokenizer's post-processor adds; a rendered chat never does.
    """

    eos_token_ids: tuple[int, ...]
    special_tokens: dict[str, str] = field(default_factory=dict)
    add_special_tokens: bool = True
    has_chat_template: bool = False


@dataclass(frozen=True)
class File:
    bytes: int
    xxh3_128: str


@dataclass(frozen=True)
class Manifest:
    """An engine directory. default_sampling: fields of SamplingParams that the model's authors recommend."""

    model: str
    target: Target
    limits: Limits
    plan: Plan
    files: dict[str, File]
    tokenizer: Tokenizer | None = None  # None: prompts are token ids, completions have no text
    deterministic: bool = False
    default_sampling: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    model_config: dict = field(default_factory=dict)
    slipway_version: str = ""
    abi_version: int = ABI_VERSION
    format_version: int = FORMAT_VERSION

    def write(self, directory: str | pathlib.Path) -> None:
        """Writes engine.json. The other files must be in place already."""
        body = to_json(self)
        text = json.dumps({"checksum": _checksum(body), **body}, indent=1)
        (pathlib.Path(directory) / FILE_NAME).write_text(text + "\n")

    @classmethod
    def read(cls, directory: str | pathlib.Path) -> Manifest:
        """The manifest, every name, index and range in it checked, every file there and as long as it should be.

        Raises EngineError. The contents of the files are `integrity.verify`'s business.
        """
        from slipway.runtime.manifest_checks import check_files, check_manifest

        where = str(pathlib.Path(directory) / FILE_NAME)
        manifest = from_json(cls, _checked_body(where), where)
        check_manifest(manifest, where)
        check_files(manifest, pathlib.Path(directory))
        return manifest


def hash_file(path: str | pathlib.Path) -> File:
    """The entry of `Manifest.files` for a file on disk."""
    digest = xxhash.xxh3_128()
    size = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
            size += len(chunk)
    return File(size, digest.hexdigest())


def _checksum(body: dict) -> str:
    return xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _checked_body(where: str) -> dict:
    try:
        body = json.loads(pathlib.Path(where).read_bytes())
    except FileNotFoundError:
        raise EngineError(where, "no such file", "an engine directory made by `slipway build`") from None
    except OSError as error:
        raise EngineError(where, error.strerror, "an engine directory made by `slipway build`") from None
    except (ValueError, RecursionError) as error:
        raise EngineError(where, f"not JSON ({error})", hint="the engine is damaged: copy or build it again") from None
    if not isinstance(body, dict) or "format_version" not in body:
        raise EngineError(where, "no format_version", "an engine directory made by `slipway build`")
    for name, ours in (("format_version", FORMAT_VERSION), ("abi_version", ABI_VERSION)):
        if body.get(name) != ours:
            raise EngineError(where, f"{name} {body.get(name)}", f"{ours}", "build the engine with this Slipway")
    if body.pop("checksum", None) != _checksum(body):
        raise EngineError(where, "contents do not match their checksum", hint="the engine is damaged: copy or build it again")
    return body
