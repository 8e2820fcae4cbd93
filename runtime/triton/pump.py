"""One thread that takes what the engine produces for all requests and sends it as responses.

A request that goes wrong is ended with an error and the others go on. Should the pump itself fail, it ends all requests
with an error and takes no more.

It takes everything that waits at once, so that a request whose tokens came faster than they could be sent gets them in
one response: the further the pump is behind, the fewer responses it sends.
"""

from __future__ import annotations

import queue
import threading

from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.triton.exchange import Exchange, Part


class Job:
    """A Triton request in flight: its exchange, what the engine runs for it, and the news not yet sent."""

    def __init__(self, exchange: Exchange, sender, request_id: str = ""):
        self.exchange, self.sender, self.request_id = exchange, sender, request_id
        self.requests: list = []  # of the engine, one a call
        self.parts: dict[tuple[int, int], Part] = {}
        self.num_running = sum(call.params.n for call in exchange.calls)
        self.error: Exception | None = None
        self.closed = False  # the last response is sent, or about to be
        self.lock = threading.Lock()  # over `closed`: a closed sender must not be asked anything

    @property
    def ended(self) -> bool:
        return self.error is not None or self.num_running == 0

    def cancel(self) -> None:
        for request in self.requests:
            request.cancel()

    def collect(self) -> None:
        """Takes what the engine has produced since the last time, without waiting."""
        for call, request in enumerate(self.requests):
            for delta in request.news():
                if delta is None:
                    self.error = self.error or unfinished(request.error)
                else:
                    self._add(call, request, delta)

    def take_news(self) -> list[Part]:
        """Parts to respond with now; the next ones begin where they end."""
        news = [part for part in self.parts.values() if part.token_ids or part.text or part.finish_reason]
        for part in news:
            self.parts[part.call, part.index] = part.next()
        return news

    def _add(self, call: int, request, delta) -> None:
        part = self.parts.setdefault((call, delta.index), Part(call, delta.index))
        part.num_prompt_tokens = request.num_prompt_tokens
        part.text += delta.text
        part.token_ids += delta.token_ids
        part.logprobs += delta.logprobs or []
        part.cumulative_logprob += sum(entries[0].logprob for entries in delta.logprobs or [])
        if delta.finish_reason:
            part.finish_reason = delta.finish_reason
            self.num_running -= 1


def unfinished(error: Exception | None) -> Exception | None:
    """The engine took the request: that it did not finish it says nothing against the request."""
    return EngineError(error.where, error.found) if isinstance(error, RequestError) else error


class Pump(threading.Thread):
    """wire: the module of that name, or a test's stand-in."""

    def __init__(self, wire):
        super().__init__(name="slipway-pump")
        self.wire = wire
        self.jobs: dict[Job, None] = {}  # a set that any thread may copy
        self.waiting: queue.SimpleQueue = queue.SimpleQueue()  # jobs with news, None to stop
        self.failure: EngineError | None = None

    def add(self, job: Job) -> None:
        """The engine has taken all calls of the job. Raises EngineError if the pump has failed."""
        self.jobs[job] = None
        if self.failure:  # looked at after the job was put where a failing pump finds it
            job.cancel()
            raise self.failure
        for request in job.requests:
            request.listen(lambda: self.waiting.put(job))
        self.waiting.put(job)  # for what came before listen

    def stop(self) -> None:
        """Returns when everything that waits has been sent."""
        self.waiting.put(None)
        self.join()

    def run(self) -> None:
        try:
            self._pump()
        except Exception as error:  # a bug of ours: tell those who wait, then let the thread die of it
            self.failure = EngineError("pump", f"it has failed: {error!r}")
            for job in list(self.jobs):
                self._give_up(job, self.failure)
            raise

    def _pump(self) -> None:
        stopped = False
        while not stopped:
            jobs = self._take()
            stopped = None in jobs
            for job in jobs:
                if job and not job.closed:
                    self._serve(job)

    def _take(self) -> dict[Job | None, None]:
        """All that wait, at least one, each once."""
        jobs = {self.waiting.get(): None}
        while not self.waiting.empty():
            jobs[self.waiting.get()] = None
        return jobs

    def _serve(self, job: Job) -> None:
        try:
            job.collect()
            self._respond(job)
        except Exception as error:  # of one request: the others go on
            self._give_up(job, error)

    def _respond(self, job: Job) -> None:
        if job.ended:
            self._close(job)
        if job.error:
            job.cancel()
            self.wire.fail(job.sender, job.error)
        elif job.ended or job.exchange.stream:
            self._send(job, job.take_news())

    def _send(self, job: Job, news: list[Part]) -> None:
        responses = job.exchange.responses(news) if news else []
        for number, outputs in enumerate(responses, 1):
            self.wire.send(job.sender, outputs, final=job.ended and number == len(responses))

    def _give_up(self, job: Job, error: Exception) -> None:
        self._close(job)
        job.cancel()
        self.wire.give_up(job.sender, error)

    def _close(self, job: Job) -> None:
        self.jobs.pop(job, None)
        with job.lock:
            job.closed = True
