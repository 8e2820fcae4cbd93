"""What a request asks of the sampler, checked field by field."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import Grammar


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn and when a completion ends. None: what engine.json recommends for the model, else neutral.

    stop, bad_words: strings; bad_words may also be lists of token ids. Both are matched across token borders.
    logprobs: k, for those of the token drawn and of the k best; prompt_logprobs: the same for the tokens of the prompt, which is
    then computed anew, as many tokens a step as the engine has logit rows. Completions are the same for the same seed.
    grammar: what the completion must match; it ends with "stop" as soon as nothing could follow.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0 is off
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    bad_words: Sequence[str | Sequence[int]] = ()
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    speculate_tokens: int = 0
    grammar: Grammar | None = None

    def __post_init__(self):
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, (kind, fits, expected) in NUMBERS.items():
            value = getattr(self, name)
            if value is not None and not (_is(kind, value) and fits(value)):
                raise RequestError(name, f"{value!r:.80}", expected)
        for name, (fits, expected) in COLLECTIONS.items():
            value = getattr(self, name)
            if not _accepts(fits, value):
                raise RequestError(name, f"{value!a:.80}", expected)
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise RequestError(name, f"{getattr(self, name)!r}", "True or False")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError("grammar", f"{self.grammar!r:.40}", "a Grammar, such as Grammar.regex(...)")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError("min_tokens", f"{self.min_tokens}", f"at most max_tokens, {self.max_tokens}")

    def with_defaults(self, recommended: Mapping[str, object]) -> SamplingParams:
        """The parameters with every None that has a recommended or a neutral value replaced by it."""
        values = {**NEUTRAL, **{name: value for name, value in recommended.items() if value is not None}}
        return dataclasses.replace(self, **{name: v for name, v in values.items() if getattr(self, name) is None})


INT32 = 1 << 31
MAX_STOPS, MAX_STOP_LENGTH, MAX_STOP_IDS, MAX_BAD_WORDS = 64, 1024, 1024, 1024  # each is looked for at every token

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0}
RECOMMENDABLE = (*NEUTRAL, "max_tokens")
FLAGS = ("ignore_eos", "include_stop", "skip_special_tokens")


def _share(value: float) -> bool:
    return 0 < value <= 1


# name: (type, range, words for both)
NUMBERS = {
    "max_tokens": (int, lambda value: 1 <= value < INT32, "a whole number in 1..2^31-1"),
    "min_tokens": (int, lambda value: 0 <= value < INT32, "a whole number in 0..2^31-1"),
    "temperature": (float, lambda value: value >= 0, "a number of at least 0"),
    "top_k": (int, lambda value: 0 <= value < INT32, "a whole number in 0..2^31-1 (0 is off)"),
    "top_p": (float, _share, "a number in (0, 1]"),
    "min_p": (float, lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    "typical_p": (float, _share, "a number in (0, 1]"),
    "repetition_penalty": (float, lambda value: value > 0, "a number above 0"),
    "presence_penalty": (float, lambda _: True, "a number"),
    "frequency_penalty": (float, lambda _: True, "a number"),
    "seed": (int, lambda value: 0 <= value < 1 << 64, "a whole number in 0..2^64-1"),
    "logprobs": (int, lambda value: 0 <= value <= 1024, "a whole number in 0..1024"),
    "prompt_logprobs": (int, lambda value: 0 <= value <= 1024, "a whole number in 0..1024"),
    "n": (int, lambda value: 1 <= value <= 128, "a whole number in 1..128"),
    "speculate_tokens": (int, lambda value: 0 <= value <= 64, "a whole number in 0..64"),
}


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is(kind: type, value: object) -> bool:
    return is_integer(value) or kind is float and isinstance(value, float) and math.isfinite(value)


def _accepts(fits: Callable, value: object) -> bool:
    try:
        return bool(fits(value))
    except TypeError:  # not a collection at all
        return False


def is_unicode(text: str) -> bool:
    """Whether the text has an encoding: no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_STOP_LENGTH and is_unicode(value)


def _bad_word(value: object) -> bool:
    return _word(value) or _ids(value) and 0 < len(value) <= MAX_STOP_LENGTH


def _id(value: object) -> bool:
    return is_integer(value) and 0 <= value < INT32


def _ids(value: object) -> bool:
    return not isinstance(value, str) and all(map(_id, value))


COLLECTIONS = {
    "logit_bias": (
        lambda value: all(_id(token) and _is(float, bias) for token, bias in value.items())
        if isinstance(value, Mapping) else False,
        "a mapping of token id to number",
    ),
    "bad_words": (lambda value: not isinstance(value, str) and len(value) <= MAX_BAD_WORDS and all(map(_bad_word, value)),
                  f"up to {MAX_BAD_WORDS} non-empty strings of up to {MAX_STOP_LENGTH} characters, or lists of as many token ids"),
    "stop": (lambda value: len(value) <= MAX_STOPS and all(map(_word, value)),
             f"a non-empty string of up to {MAX_STOP_LENGTH} characters, or up to {MAX_STOPS} of them"),
    "stop_token_ids": (lambda value: len(value) <= MAX_STOP_IDS and _ids(value), f"a list of up to {MAX_STOP_IDS} token ids"),
}  # fmt: skip


def recommended(values: Mapping[str, object], where: str) -> dict:
    """default_sampling of engine.json, checked. Raises RequestError."""
    for name in values:
        if name not in RECOMMENDABLE:
            near = difflib.get_close_matches(name, RECOMMENDABLE, n=1)
            raise RequestError(where, f"unknown key {name!r}", f"one of {', '.join(RECOMMENDABLE)}", f"did you mean {near[0]!r}?" if near else None)
    SamplingParams(**values)
    return dict(values)
