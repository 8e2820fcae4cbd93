"""One thread that looks after what happens outside requests: clients that went away, and the metrics.

It is the only one that touches metrics: calls from several threads crash the server.
"""

from __future__ import annotations

import threading

from slipway.runtime.triton.metrics import Metrics
from slipway.runtime.triton.pump import Job, Pump

PERIOD_S = 0.1
METRICS_EVERY = 5  # periods


class Attendant(threading.Thread):
    def __init__(self, pump: Pump, engine, labels: dict[str, str]):
        super().__init__(name="slipway-attendant")
        self.pump, self.engine = pump, engine
        self.metrics = Metrics(labels)
        self.stopped = threading.Event()

    def run(self) -> None:
        period = 0
        while not self.stopped.wait(PERIOD_S):
            for job in list(self.pump.jobs):
                cancel_if_abandoned(job)
            if period % METRICS_EVERY == 0:
                self.metrics.update(self.engine.metrics())
            period += 1

    def stop(self) -> None:
        self.stopped.set()
        self.join()


def cancel_if_abandoned(job: Job) -> None:
    with job.lock:
        abandoned = not job.closed and job.sender.is_cancelled()
    if abandoned:
        job.cancel()
