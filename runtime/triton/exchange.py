"""One Triton request and its responses, in the engine's words: what both contracts share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from slipway.runtime.errors import RequestError
from slipway.runtime.sampling import SamplingParams

Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One prompt for the engine. options: of Engine.submit."""

    prompt: str | list[int]
    params: SamplingParams
    options: dict = field(default_factory=dict)


@dataclass
class Part:
    """What sequence `index` of call `call` has produced since the last response."""

    call: int
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    finish_reason: str | None = None
    cumulative_logprob: float = 0.0  # since the beginning
    num_prompt_tokens: int = 0

    def next(self) -> Part:
        """The part that follows this one."""
        return Part(
            self.call,
            self.index,
            cumulative_logprob=self.cumulative_logprob,
            num_prompt_tokens=self.num_prompt_tokens,
        )


class Exchange(Protocol):
    calls: list[Call]
    stream: bool  # respond as tokens arrive; otherwise with one response, at the end

    def responses(self, parts: list[Part]) -> list[Outputs]:
        """parts: of this exchange, those with news, or, when not streaming, all."""


def read_text(name: str, value: bytes | str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RequestError(name, f"byte {error.start} is not UTF-8", "UTF-8 text") from None


def text_tensor(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], dtype=np.object_)
