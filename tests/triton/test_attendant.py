"""The attendant goes on whatever goes wrong, and withdraws a model that can serve no more."""

import queue
from types import SimpleNamespace

import pytest

from slipway.runtime.errors import EngineError
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.triton import attendant
from slipway.runtime.triton.exchange import Call
from slipway.runtime.triton.pump import Job


class Wire:
    def __init__(self):
        self.notes, self.withdrawn = queue.Queue(), queue.Queue()

    def note(self, error):
        self.notes.put(error)

    def withdraw(self, model, failure):
        self.withdrawn.put((model, str(failure)))


@pytest.fixture
def place(monkeypatch):
    """An attendant at work, and all that it looks after."""
    monkeypatch.setattr(attendant, "PERIOD_S", 0.005)
    found = SimpleNamespace(
        wire=Wire(),
        pump=SimpleNamespace(jobs={}, failure=None),
        engine=SimpleNamespace(failure=None, metrics=dict),
        metrics=SimpleNamespace(update=lambda values: None),
    )
    thread = attendant.Attendant("m", found.pump, found.engine, found.metrics, found.wire)
    thread.start()
    yield found
    assert thread.is_alive()
    thread.stop()


def job(is_cancelled):
    cancelled = queue.Queue()
    made = Job(SimpleNamespace(calls=[Call("p", SamplingParams())]), SimpleNamespace(is_cancelled=is_cancelled))
    made.requests = [SimpleNamespace(cancel=lambda: cancelled.put(True))]
    return made, cancelled


def test_a_client_that_left_is_cancelled(place):
    left, cancelled = job(lambda: True)
    stayed, not_cancelled = job(lambda: False)
    place.pump.jobs.update({stayed: None, left: None})
    assert cancelled.get(timeout=5) and not_cancelled.empty()


def test_one_client_that_cannot_be_asked_for_does_not_hide_the_next(place):
    broken, ended = job(lambda: 1 // 0)
    left, cancelled = job(lambda: True)
    place.pump.jobs.update({broken: None, left: None})
    assert ended.get(timeout=5) and cancelled.get(timeout=5)
    assert isinstance(place.wire.notes.get(timeout=5), ZeroDivisionError)


def test_metrics_that_fail_do_not_stop_it(place):
    place.metrics.update = lambda values: 1 // 0
    assert isinstance(place.wire.notes.get(timeout=5), ZeroDivisionError)
    left, cancelled = job(lambda: True)
    place.pump.jobs[left] = None
    assert cancelled.get(timeout=5)


@pytest.mark.parametrize("part", ["engine", "pump"])
def test_a_model_that_has_failed_is_withdrawn_once(place, part):
    getattr(place, part).failure = EngineError(part, "it has failed")
    assert place.wire.withdrawn.get(timeout=5) == ("m", f"{part}: it has failed")
    with pytest.raises(queue.Empty):
        place.wire.withdrawn.get(timeout=0.1)
