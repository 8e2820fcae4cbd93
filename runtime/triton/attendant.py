"""One thread that looks after what happens outside requests: clients that went away, metrics, and the model's own health.

It is the only one that touches metrics: calls from several threads crash the server.
"""

from __future__ import annotations

import itertools
import threading

from slipway.runtime.errors import EngineError
from slipway.runtime.triton.pump import Job, Pump

PERIOD_S = 0.1
METRICS_EVERY = 5  # periods


class Attendant(threading.Thread):
    """wire, metrics: the module and a Metrics, or a test's stand-ins."""

    def __init__(self, model: str, pump: Pump, engine, metrics, wire):
        super().__init__(name="slipway-attendant")
        self.model, self.pump, self.engine, self.metrics, self.wire = model, pump, engine, metrics, wire
        self.withdrawn = False
        self.stopped = threading.Event()

    def run(self) -> None:
        for period in itertools.count():
            if self.stopped.wait(PERIOD_S):
                return
            try:
                self._attend(period)
            except Exception as error:  # the next time may go well, and clients still leave
                self.wire.note(error)

    def stop(self) -> None:
        self.stopped.set()
        self.join()

    @property
    def failure(self) -> EngineError | None:
        """Why the model serves no more."""
        return self.engine.failure or self.pump.failure

    def _attend(self, period: int) -> None:
        for job in list(self.pump.jobs):
            if self._is_abandoned(job):
                job.cancel()
        if self.failure and not self.withdrawn:
            self.withdrawn = True
            self.wire.withdraw(self.model, self.failure)
        if period % METRICS_EVERY == 0:
            self.metrics.update(self.engine.metrics())

    def _is_abandoned(self, job: Job) -> bool:
        """A client that cannot be asked for counts as gone."""
        try:
            with job.lock:
                return not job.closed and job.sender.is_cancelled()
        except Exception as error:
            self.wire.note(error)
            return True
