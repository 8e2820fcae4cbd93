"""A request in flight, as its caller sees it: deltas as they come, completions at the end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from slipway.runtime.errors import RequestError


@dataclass(frozen=True)
class Logprob:
    """rank: 1 is the likeliest; None where the token drawn is not among the best asked for."""

    token_id: int
    logprob: float
    rank: int | None
    text: str


@dataclass(frozen=True)
class RequestMetrics:
    """Seconds. queue: until the first step with this request; ttft: until the first token; total: until the end."""

    queue_s: float
    ttft_s: float
    total_s: float
    inter_token_s: float  # mean, 0 for a single token
    preemptions: int = 0


@dataclass(frozen=True)
class Delta:
    """New tokens of one sequence. text: whole characters only; it may lag behind the tokens.

    logprobs: for each token, its own entry and then the best, if asked for. prompt_logprobs: the same for the tokens of the
    prompt, None for the first, which follows nothing; in the first delta of the first sequence. finish_reason: "stop", "length", "cancelled" or
    "deadline" in the last delta of a sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[list[Logprob]] | None = None
    finish_reason: str | None = None
    metrics: RequestMetrics | None = None  # in the last delta
    cached_tokens: int = 0
    prompt_logprobs: list[list[Logprob] | None] | None = None


@dataclass
class Completion:
    index: int
    prompt_tokens: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[Logprob]] | None = None
    finish_reason: str | None = None
    cached_tokens: int = 0  # of the prompt, found in the KV cache
    metrics: RequestMetrics | None = None
    prompt_logprobs: list[list[Logprob] | None] | None = None  # of the first sequence

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.finish_reason = delta.finish_reason
        self.cached_tokens, self.metrics = delta.cached_tokens, delta.metrics


class Request:
    """Iterate for deltas until every sequence has ended, or wait for `result`. One reader, any thread.

    Raises RequestError, from either, if the engine could not finish it.
    """

    def __init__(self, num_prompt_tokens: int, num_sequences: int, cancel: Callable[[Request], None]):
        self.num_prompt_tokens = num_prompt_tokens
        self.completions = [Completion(index, num_prompt_tokens) for index in range(num_sequences)]
        self.error: Exception | None = None
        self.id: int | None = None
        self._cancel = cancel
        self._ended = threading.Event()
        self._news: queue.SimpleQueue = queue.SimpleQueue()
        self._listener: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Delta]:
        while (delta := self._news.get()) is not None:
            yield delta
        self._news.put(None)  # for whoever asks again
        if self.error:
            raise self.error

    def cancel(self) -> None:
        """Ends the request soon; sequences that were not finished end with "cancelled". Harmless when it has ended."""
        if not self._ended.is_set():
            self._cancel(self)

    def result(self, timeout: float | None = None) -> Completion:
        """The completion, of the first sequence if there are several; waits for the end."""
        return self.results(timeout)[0]

    def results(self, timeout: float | None = None) -> list[Completion]:
        if not self._ended.wait(timeout):
            raise TimeoutError(f"the request has not ended within {timeout} s")
        if self.error:
            raise self.error
        return self.completions

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls `listener` from the dispatcher's thread whenever there is news."""
        self._listener = listener

    def news(self) -> list[Delta | None]:
        """What has come, without waiting; None is the end."""
        found = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    # The dispatcher's side.

    def add(self, delta: Delta) -> None:
        self.completions[delta.index].add(delta)
        self._news.put(delta)
        if all(completion.finish_reason for completion in self.completions):
            self._end()
        elif self._listener:
            self._listener()

    def fail(self, error: Exception) -> None:
        if not self._ended.is_set():
            self.error = error
            self._end()

    def _end(self) -> None:
        self._ended.set()
        self._news.put(None)
        if self._listener:
            self._listener()


def failed(message: str) -> RequestError:
    return RequestError("request", message)
