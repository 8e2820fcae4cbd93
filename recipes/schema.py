"""A recipe file  ->  a checked Recipe: every choice of a build, stated or by default."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from slipway.compiler.errors import UserError
from slipway.compiler.target import ACTIVATION_FACTORS, GPUS
from slipway.recipes import source
from slipway.recipes.problems import Expects, Key, UserErrors, dotted, one_of, translate

WeightType = Literal["bf16", "int8", "int4", "fp8", "fp8_block", "nvfp4", "mxfp4"]
CARD_TARGETS = {"a100": "sm80", "l40s": "sm89", "h100": "sm90", "h200": "sm90", "b200": "sm100", "rtx-pro-6000": "sm120"}  # as compiler/cards.py
WIDER_HEADS = {"int4": "int8", "nvfp4": "fp8", "mxfp4": "fp8"}
GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
# nats a token, against the checkpoint in float32
KL_LIMITS = {"bf16": 0.002, "int8": 0.005, "fp8": 0.01, "fp8_block": 0.01, "int4": 0.05, "nvfp4": 0.1, "mxfp4": 0.15}
ACTIVATIONS_KL_LIMITS = {"fp8": 0.02, "nvfp4": 0.2}

MOST = 1 << 30  # of anything counted
MOST_BATCH_TOKENS = 1 << 16  # activations have room for all of them
LEAST_CUBLAS_ROWS = 17  # fewer stream their weights
Count = Annotated[int, Field(ge=1, le=MOST), Expects(f"a whole number from 1 to {MOST}")]
GroupSize = Annotated[int | None, Field(json_schema_extra={"enum": [*GROUP_SIZES, None]})]


def rule(found: str, expected: str | None = None, hint: str | None = None) -> PydanticCustomError:
    """A broken rule between fields, in the words of a UserError."""
    return PydanticCustomError("rule", "{found}", {"found": found, "expected": expected, "hint": hint})


def _check_group_size(value: int | None, has_int4: bool) -> int | None:
    if value is None:
        return DEFAULT_GROUP_SIZE if has_int4 else None
    if not has_int4:
        raise rule("only int4 weights have groups", None, "remove it, or --set the key to null")
    if value not in GROUP_SIZES:
        nearest = min(GROUP_SIZES, key=lambda size: abs(size - value))
        raise rule(f"int4 weights need {one_of(GROUP_SIZES)}, got {value}", None, f"group_size: {nearest}")
    return value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class LinearPrecision(NamedTuple):
    """How the weight of one linear is stored; group_size and zero_point only for int4."""

    weights: WeightType
    group_size: int | None
    zero_point: bool


class Cpu(Section):
    isa: Literal["auto", "avx2", "avx512", "avx512_bf16", "amx"] = "auto"
    """Instruction set of the kernels; auto is the strongest of the building machine."""
    threads: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], Expects("auto or a number of threads, at most 1024")] = "auto"
    """Threads of the engine; auto is one a core the serving process is granted, hyperthreads counted as cores."""


class Gpu(Section):
    cublas: Annotated[
        Literal["auto", "never"] | Annotated[int, Field(ge=LEAST_CUBLAS_ROWS, le=MOST_BATCH_TOKENS)],
        Expects(f"auto, never, or rows from {LEAST_CUBLAS_ROWS} to {MOST_BATCH_TOKENS}"),
    ] = "auto"
    """Rows of a step from which linears in bf16 and fp8 are multiplied by cuBLASLt, which the machine that serves must have then; auto:
    where that is expected to be faster; never: kernels of our own alone."""


class Override(Section):
    match: Annotated[str, Field(min_length=1), Expects("a module path, may hold * and ?")]
    """Module paths of linears, such as model.layers.*.mlp.down_proj."""
    weights: WeightType
    """Storage of these weights."""
    group_size: GroupSize = Field(None, validate_default=True)
    """int4 only: inputs that share a scale."""
    zero_point: bool = False
    """int4 only: groups have a zero point."""

    @field_validator("group_size")
    @classmethod
    def _group_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        return _check_group_size(value, info.data.get("weights", "int4") == "int4")

    @field_validator("zero_point")
    @classmethod
    def _zero_point(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("weights", "int4") != "int4":
            raise rule("only int4 weights have zero points", None, "zero_point: false")
        return value


class Precision(Section):
    weights: WeightType
    """Storage of the linears' weights."""
    lm_head: WeightType | None = Field(None, validate_default=True)
    """Storage of the last linear; the same as weights by default, but int8 beside int4, fp8 beside nvfp4 and mxfp4."""
    group_size: GroupSize = Field(None, validate_default=True)
    """int4 only: inputs that share a scale (32, 64 or 128; 64 by default)."""
    zero_point: bool = False
    """int4 only: groups have a zero point."""
    activations: Literal["bf16", "fp8", "nvfp4"] = "bf16"
    """What weights are multiplied with in steps of many tokens, on GPUs that multiply such numbers; the last linear stays with bf16. fp8: from
    sm89 on, fp8 weights with e4m3 codes that have a scale a token, at up to twice the rate. nvfp4: from sm100 on, nvfp4 weights, which the
    engine holds twice, at up to four times the rate."""
    embedding: Literal["bf16"] = "bf16"
    """Storage of the token embedding."""
    kv_cache: Literal["bf16", "int8", "fp8"] = "bf16"
    """Storage of keys and values; int8 has a scale for each token and KV head."""
    overrides: Annotated[tuple[Override, ...], Field(strict=False)] = ()
    """Linears stored otherwise; the first that matches counts."""

    @field_validator("lm_head")
    @classmethod
    def _lm_head(cls, value: WeightType | None, info: ValidationInfo) -> WeightType | None:
        weights = info.data.get("weights")
        return value or WIDER_HEADS.get(weights, weights)

    @field_validator("group_size")
    @classmethod
    def _group_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        return _check_group_size(value, _has_int4(info))

    @field_validator("zero_point")
    @classmethod
    def _zero_point(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not _has_int4(info):
            raise rule("only int4 weights have zero points", None, "zero_point: false")
        return value

    def of(self, module: str) -> LinearPrecision:
        """How the weight of the linear at a module path is stored."""
        for override in self.overrides:
            if fnmatch.fnmatchcase(module, override.match):
                return LinearPrecision(override.weights, override.group_size, override.zero_point)
        weights = self.lm_head if module == "lm_head" else self.weights
        int4 = weights == "int4"
        return LinearPrecision(weights, self.group_size if int4 else None, self.zero_point and int4)


def _has_int4(info: ValidationInfo) -> bool:
    """Whether group_size and zero_point have a meaning; true while the weights themselves are in error."""
    return "int4" in (info.data.get("weights", "int4"), info.data.get("lm_head", "int4"))


class Limits(Section):
    max_sequence_length: Annotated[int, Field(ge=2, le=MOST), Expects(f"a whole number from 2 to {MOST}")]
    """Tokens of one sequence, prompt and completion."""
    max_batch_tokens: Annotated[int, Field(ge=1, le=MOST_BATCH_TOKENS), Expects(f"a whole number from 1 to {MOST_BATCH_TOKENS}")] = 1024
    """Tokens of one step, over all sequences."""
    max_sequences: Count = Field(32, validate_default=True)
    """Sequences that run at once."""
    kv_cache_tokens: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=MOST)], Expects(f"auto or a number of tokens, at most {MOST}")] = "auto"
    """Tokens the KV cache holds; auto: max_sequences full sequences, in at most half of the free memory."""

    @field_validator("max_sequences")
    @classmethod
    def _max_sequences(cls, value: int, info: ValidationInfo) -> int:
        tokens = info.data.get("max_batch_tokens", value)
        if value > tokens:
            raise rule(f"{value} sequences decode {value} tokens a step, more than max_batch_tokens", f"at most {tokens}")
        return value

    @field_validator("kv_cache_tokens")
    @classmethod
    def _kv_cache_tokens(cls, value: int | str, info: ValidationInfo) -> int | str:
        longest = info.data.get("max_sequence_length", 1)
        if value != "auto" and value < longest:
            raise rule(f"{value} tokens do not hold one sequence of max_sequence_length", f"at least {longest}")
        return value


class Runtime(Section):
    deterministic: bool = False
    """A request's tokens do not depend, bit for bit, on what else runs. On cpu that costs nothing: its kernels never do."""


class Sampling(Section):
    """What a request gets that does not say otherwise; unset: as the checkpoint's generation_config.json says."""

    temperature: Annotated[float | None, Field(ge=0), Expects("a number from 0")] = None
    """0 is greedy."""
    top_p: Annotated[float | None, Field(gt=0, le=1), Expects("a number over 0 and up to 1")] = None
    """Keep the likeliest tokens that together have this probability."""
    top_k: Annotated[int | None, Field(ge=0), Expects("a whole number from 0")] = None
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: Annotated[float | None, Field(ge=0, le=1), Expects("a number from 0 to 1")] = None
    """Keep tokens at least this likely, relative to the likeliest."""
    repetition_penalty: Annotated[float | None, Field(gt=0), Expects("a number over 0")] = None
    """Above 1: tokens seen before become less likely."""
    max_tokens: Annotated[int | None, Field(ge=1), Expects("a whole number from 1")] = None
    """Length of a completion."""


class Verify(Section):
    when: Literal["auto", "always", "never"] = "auto"
    """Compare the engine with the checkpoint; auto: when the checkpoint in float32 fits in memory."""
    kl: Annotated[float | None, Field(gt=0), Expects("a number over 0")] = None
    """Largest mean KL divergence a token; by default 0.002 for bf16, 0.005 for int8, 0.01 for fp8 and fp8_block, 0.05 for int4, 0.1
    for nvfp4, 0.15 for mxfp4, the loosest that a linear has; 0.02 for fp8 activations and 0.2 for nvfp4's."""


@dataclass(frozen=True)
class Origin:
    """Where a recipe was read from."""

    path: Path
    document: source.Document


class Recipe(Section):
    version: Literal[1] = Field(alias="schema")
    """Version of the recipe format."""
    model: Annotated[str, Field(min_length=1), Expects("the model's name")]
    """What the engine calls itself."""
    checkpoint: Annotated[str | None, Expects("a folder")] = None
    """Hugging Face checkpoint folder, relative to this file; slipway build --model DIR goes before it."""
    target: Literal["cpu", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120"]
    """What the engine runs on: this kind of processor, or an NVIDIA GPU by its compute capability."""
    cpu: Cpu = Cpu()
    """Choices for target: cpu."""
    gpu: Gpu = Gpu()
    """Choices for a target that is a GPU."""
    precision: Precision
    """How numbers are stored."""
    limits: Limits
    """What the engine must hold at once."""
    runtime: Runtime = Runtime()
    """How the engine runs."""
    sampling: Sampling = Sampling()
    """What a request gets that does not say otherwise; unset: as the checkpoint's generation_config.json says."""
    verify: Verify = Verify()
    """The accuracy an engine must have to be published."""

    _origin: Origin = PrivateAttr()

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value: Any) -> Any:
        if isinstance(value, str) and (target := CARD_TARGETS.get(value.lower())):
            raise rule(f"{value!r} is a card", "its compute capability", f"target: {target}")
        return value

    @property
    def path(self) -> Path:
        return self._origin.path

    @property
    def checkpoint_dir(self) -> Path | None:
        return self.path.parent / self.checkpoint if self.checkpoint else None

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as JSON types."""
        return self.model_dump(mode="json", by_alias=True)

    def error(self, key: Key, found: str, expected: str | None = None, hint: str | None = None) -> UserError:
        """A user error at a key of this recipe: recipe.error(("limits", "max_sequences"), "…")."""
        return UserError(f"{self._origin.document.place(key)}: {dotted(key)}", found, expected, hint)


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `--set key=value` overrides. Raises UserError; UserErrors for several."""
    path = Path(path)
    document = source.read(path)
    for override in overrides:
        source.set_value(document, override)
    try:
        recipe = Recipe.model_validate(document.values)
    except ValidationError as error:
        UserErrors.check(translate(error, Recipe, document))
        raise
    recipe._origin = Origin(path, document)
    UserErrors.check(list(_target_problems(recipe)))
    return recipe


def _target_problems(recipe: Recipe) -> Iterator[UserError]:
    """What the recipe asks for and its target has no kernels for."""
    precision = recipe.precision
    if recipe.target == "cpu":
        if recipe.gpu != Gpu():
            yield recipe.error(("gpu",), "choices for a GPU, and target is cpu", None, "leave gpu out")
        if precision.activations != "bf16":
            yield recipe.error(("precision", "activations"), f"{precision.activations} activations have kernels for GPUs alone", "bf16 for target: cpu",
                               "activations: bf16")
        if precision.kv_cache == "fp8":
            yield recipe.error(("precision", "kv_cache"), "fp8 keys and values have kernels for GPUs alone", "bf16 or int8 for target: cpu", "kv_cache: int8")
        return
    if recipe.runtime.deterministic:
        yield recipe.error(("runtime", "deterministic"), "kernels for GPUs sum in an order that depends on how many tokens a step has", "false for a GPU",
                           "deterministic: false")
    if precision.activations != "bf16":
        wanted, key = precision.activations, ("precision", "activations")
        able = [kind for kind, gpu in GPUS.items() if ACTIVATION_FACTORS[wanted] in gpu.factors]
        if recipe.target not in able:
            yield recipe.error(key, f"{recipe.target} does not multiply {wanted}", f"bf16, or a target from {able[0]} on", "activations: bf16")
        elif wanted not in (precision.weights, *(override.weights for override in precision.overrides)):
            yield recipe.error(key, f"{wanted} activations are for {wanted} weights", f"bf16 with {precision.weights} weights", "activations: bf16")
        elif recipe.gpu.cublas == "never":
            yield recipe.error(key, f"{wanted} activations are multiplied by cuBLASLt, and gpu.cublas is never", "bf16", "gpu.cublas: auto")
    if recipe.cpu != Cpu():
        yield recipe.error(("cpu",), f"choices for a CPU, and target is {recipe.target}", None, "leave cpu out")
