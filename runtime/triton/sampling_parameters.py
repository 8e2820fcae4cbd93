"""vLLM's sampling parameters, by their names, to those of the engine."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

from slipway.runtime.errors import RequestError
from slipway.runtime.grammar import WHITESPACE, Grammar, parse

DEFAULTS = {"max_tokens": 16}  # vLLM's, where it is not the engine's


def number(kind: type) -> Callable[[str, Any], Any]:
    def read(name: str, value: Any) -> Any:
        try:
            found = kind(value)
            if isinstance(value, bool) or isinstance(value, float) and found != value:
                raise ValueError
            return found
        except (TypeError, ValueError, OverflowError):
            raise RequestError(name, repr(value), "an integer" if kind is int else "a number") from None

    return read


def flag(name: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise RequestError(name, repr(value), "true or false")


def strings(name: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise RequestError(name, repr(value), "a string or a list of strings")
    return items


def token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list):
        raise RequestError(name, repr(value), "a list of token ids")
    return [number(int)(name, item) for item in value]


def logit_bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise RequestError(name, repr(value), "an object of token id: bias")
    return {number(int)(name, token): number(float)(name, bias) for token, bias in value.items()}


# Fields of vLLM's StructuredOutputsParams, of which one is given.
STRUCTURES = {
    "json": Grammar.json_schema,
    "json_object": lambda _, whitespace: Grammar.json_schema({"type": "object"}, whitespace),
    "regex": lambda value, _: Grammar.regex(value),
    "choice": lambda value, _: Grammar.choice(value),
    "grammar": lambda value, _: Grammar.ebnf(value),
}
HINTS = ("backend", "_backend", "disable_fallback")  # which of vLLM's libraries to use


def grammar(name: str, value: Any) -> Grammar | None:
    """value: an object, or its JSON, as Triton's vLLM backend takes it."""
    fields = parse(value) if isinstance(value, str) else value
    if not isinstance(fields, dict):
        raise RequestError(name, f"{value!r:.40}", "an object")
    stated = {key: field for key, field in fields.items() if field not in (None, False) and key not in HINTS}
    tight, pattern = stated.pop("disable_any_whitespace", False), stated.pop("whitespace_pattern", WHITESPACE)
    if len(stated) > 1 or not stated.keys() <= STRUCTURES.keys():
        raise RequestError(name, ", ".join(stated), f"one of {', '.join(STRUCTURES)}")
    return next((STRUCTURES[kind](field, "" if tight else pattern) for kind, field in stated.items()), None)


def top_k(name: str, value: Any) -> int:
    return max(0, number(int)(name, value))  # vLLM's -1 is off


# vLLM's name: (ours, how it is read)
PARAMETERS = {
    "n": ("n", number(int)),
    "presence_penalty": ("presence_penalty", number(float)),
    "frequency_penalty": ("frequency_penalty", number(float)),
    "repetition_penalty": ("repetition_penalty", number(float)),
    "temperature": ("temperature", number(float)),
    "top_p": ("top_p", number(float)),
    "top_k": ("top_k", top_k),
    "min_p": ("min_p", number(float)),
    "typical_p": ("typical_p", number(float)),
    "seed": ("seed", number(int)),
    "stop": ("stop", strings),
    "stop_token_ids": ("stop_token_ids", token_ids),
    "bad_words": ("bad_words", strings),
    "include_stop_str_in_output": ("include_stop", flag),
    "ignore_eos": ("ignore_eos", flag),
    "max_tokens": ("max_tokens", number(int)),
    "min_tokens": ("min_tokens", number(int)),
    "logprobs": ("logprobs", number(int)),
    "skip_special_tokens": ("skip_special_tokens", flag),
    "logit_bias": ("logit_bias", logit_bias),
    "structured_outputs": ("grammar", grammar),
    "guided_decoding": ("grammar", grammar),  # its name before vLLM 0.11
}
# How the engine is asked, not what for: not vLLM's.
OPTIONS = {
    "priority": ("priority", number(int)),
    "deadline_s": ("deadline", number(float)),
    "cache_salt": ("cache_salt", lambda name, value: strings(name, value)[0]),
}
# What the engine does not do: taken when it asks for nothing, refused otherwise.
NEUTRAL = {
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 0),
    "early_stopping": (False,),
    "detokenize": (True,),
    "spaces_between_special_tokens": (True,),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "allowed_token_ids": (),
    "logits_processors": (),
    "lora_name": (),
}


def read(text: str) -> tuple[dict, dict]:
    """A JSON object of vLLM's names -> (keywords of SamplingParams, keywords of Engine.submit). null means unsaid."""
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError("sampling_parameters", f"not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError("sampling_parameters", repr(values), "a JSON object")
    stated = {name: value for name, value in values.items() if value is not None}
    refuse(stated)
    if stated.keys() >= {"structured_outputs", "guided_decoding"}:
        raise RequestError("structured_outputs", "given beside guided_decoding", "one of the two")
    return DEFAULTS | translate(stated, PARAMETERS), translate(stated, OPTIONS)


def translate(stated: Mapping[str, Any], table: Mapping[str, tuple[str, Callable]]) -> dict:
    return {table[name][0]: table[name][1](name, value) for name, value in stated.items() if name in table}


def refuse(stated: Mapping[str, Any]) -> None:
    for name, value in stated.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise RequestError(name, repr(value), "it left out: the engine does not do this")
        if name not in PARAMETERS | OPTIONS | NEUTRAL:
            near = difflib.get_close_matches(name, PARAMETERS | OPTIONS, n=1)
            raise RequestError("sampling_parameters", f"unknown key {name!r}", hint=f"did you mean {near[0]!r}?" if near else None)
