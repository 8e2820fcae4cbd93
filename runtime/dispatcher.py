"""One thread that takes events out of the native engine, many at a time, and hands them to their requests.

When it ends, for whatever reason, every request has ended and none can be registered any more: nobody waits for ever.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from slipway.runtime.errors import EngineError
from slipway.runtime.requests import Delta, Logprob, Request, RequestMetrics, failed

POLL_S = 1.0


class Dispatcher(threading.Thread):
    """native: slipway.runtime._native.Engine. token_text: the text of one token alone, for logprobs."""

    def __init__(self, native, token_text: Callable[[int], str]):
        super().__init__(name="slipway-dispatcher", daemon=True)
        self.native, self.token_text = native, token_text
        self.requests: dict[int, Request] = {}
        self.ids = itertools.count(1)
        self.failure: EngineError | None = None  # why it ended, if nobody closed the engine
        self.ended: EngineError | None = None
        self.lock = threading.Lock()  # over `ended`: it is set once no request can be registered any more

    def register(self, request: Request) -> int:
        """The request's id: events that carry it go to the request, from now on. Raises EngineError after the end."""
        request.id = next(self.ids)
        with self.lock:
            if self.ended:
                raise self.ended
            self.requests[request.id] = request
        return request.id

    def forget(self, request: Request) -> None:
        self.requests.pop(request.id, None)

    def run(self) -> None:
        """Until the native engine has stopped and its last event is out."""
        try:
            while (events := self.native.poll(POLL_S)) is not None:
                for event in events:
                    self._deliver(*event)
            if why := self.native.failure():
                self.failure = EngineError("engine", f"it has failed: {why}")
        except Exception as problem:  # a bug of ours: tell those who wait, then let the thread die of it
            self.failure = EngineError("engine", f"its dispatcher has failed: {problem!r}")
            raise
        finally:
            self._end(self.failure or EngineError("engine", "closed"))

    def _end(self, error: EngineError) -> None:
        with self.lock:
            self.ended = error
        for request in list(self.requests.values()):
            request.fail(error)
        self.requests.clear()

    def _deliver(self, number: int, index: int, text: str, token_ids: list, logprobs, prompt_logprobs, finish_reason, error, metrics, cached) -> None:
        request = self.requests.get(number)
        if request is None:
            return
        if error is not None:
            request.fail(failed(error))
        else:
            times = RequestMetrics(*metrics) if metrics else None
            prompt = self._tokens(prompt_logprobs)
            prompt = None if prompt is None else [None, *prompt]
            request.add(Delta(index, text, token_ids, self._tokens(logprobs), finish_reason, times, cached, prompt))
        if request.ended:
            self.forget(request)

    def _tokens(self, logprobs: list | None) -> list[list[Logprob]] | None:
        return None if logprobs is None else [self._entries(token) for token in logprobs]

    def _entries(self, logprobs: list[tuple[int, float]]) -> list[Logprob]:
        """logprobs: of the token drawn, then of the best, best first."""
        (drawn, logprob), *best = logprobs
        ranks = {token: rank for rank, (token, _) in enumerate(best, 1)}
        first = Logprob(drawn, logprob, ranks.get(drawn), self.token_text(drawn))
        return [first, *(Logprob(token, value, ranks[token], self.token_text(token)) for token, value in best)]
