"""The pump: what the engine produces becomes responses, in order, whole, and fewer when it is behind."""

import queue
import threading
from types import SimpleNamespace

import pytest

from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.sampling import SamplingParams
from slipway.runtime.triton.exchange import Call
from slipway.runtime.triton.pump import Job, Pump


class Wire:
    """Notes what is sent; `gate` holds it up."""

    def __init__(self):
        self.sent = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()

    def send(self, sender, outputs, *, final):
        self.gate.wait(10)
        self.sent.put((sender, outputs, final))

    def fail(self, sender, error):
        self.sent.put((sender, error, True))

    give_up = fail


class Echo:
    """An exchange whose outputs are the texts of its parts."""

    def __init__(self, stream=True, n=1, calls=1):
        self.stream, self.calls = stream, [Call("p", SamplingParams(n=n))] * calls

    def responses(self, parts):
        return ["|".join(part.text for part in parts)]


class Request:
    num_prompt_tokens = 1

    def __init__(self):
        self.queue, self.cancelled, self.error, self.listener = queue.Queue(), False, None, lambda: None

    def listen(self, listener):
        self.listener = listener

    def news(self):
        return [self.queue.get() for _ in range(self.queue.qsize())]

    def cancel(self):
        self.cancelled = True

    def say(self, text, end=None, index=0):
        self.queue.put(SimpleNamespace(text=text, token_ids=[1], logprobs=None, finish_reason=end, index=index))
        if end:
            self.queue.put(None)
        self.listener()

    def fail(self, error):
        self.error = error
        self.queue.put(None)
        self.listener()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def pump(wire):
    pump = Pump(wire)
    pump.start()
    yield pump
    pump.stop()


def add(pump, exchange, sender="s"):
    job = Job(exchange, sender)
    job.requests = [Request() for _ in exchange.calls]
    pump.add(job)
    return job


def take(wire):
    return wire.sent.get(timeout=10)


def test_a_stream_is_sent_as_it_comes(pump, wire):
    job = add(pump, Echo())
    job.requests[0].say("a")
    assert take(wire) == ("s", "a", False)
    job.requests[0].say("b", end="stop")
    assert take(wire) == ("s", "b", True)
    assert job.closed and not pump.jobs


def test_news_from_before_the_pump_listened_is_sent(pump, wire):
    job = Job(Echo(), "s")
    job.requests = [Request()]
    job.requests[0].say("a", end="stop")
    pump.add(job)
    assert take(wire) == ("s", "a", True)


def test_without_stream_there_is_one_response(pump, wire):
    job = add(pump, Echo(stream=False))
    for text, end in (("a", None), ("b", None), ("c", "length")):
        job.requests[0].say(text, end)
    assert take(wire) == ("s", "abc", True) and wire.sent.empty()


def test_a_pump_that_is_behind_sends_fewer_and_loses_nothing(pump, wire):
    wire.gate.clear()
    job = add(pump, Echo())
    for number in range(100):
        job.requests[0].say(f"{number},", end="stop" if number == 99 else None)
    wire.gate.set()
    texts = []
    while not texts or not texts[-1][2]:
        texts.append(take(wire))
    assert "".join(text for _, text, _ in texts) == "".join(f"{number}," for number in range(100))
    assert len(texts) < 100


def test_the_last_of_several_sequences_ends_the_request(pump, wire):
    job = add(pump, Echo(stream=False, calls=2))
    job.requests[1].say("b", "stop")
    job.requests[0].say("a", "stop")
    assert take(wire)[1:] in (("b|a", True), ("a|b", True))


def test_an_engine_error_ends_the_request_and_cancels_the_rest(pump, wire):
    job = add(pump, Echo(calls=2))
    job.requests[0].fail(RuntimeError("no"))
    sender, error, final = take(wire)
    assert str(error) == "no" and final and job.requests[1].cancelled
    job.requests[1].say("late", "cancelled")
    pump.stop()
    assert wire.sent.empty()


def test_a_request_that_was_taken_is_not_called_wrong(pump, wire):
    add(pump, Echo()).requests[0].fail(RequestError("request", "the queue is full"))
    error = take(wire)[1]
    assert type(error) is EngineError and str(error) == "request: the queue is full"


def test_a_request_that_goes_wrong_does_not_stop_the_others(pump, wire):
    wrong, good = Echo(), Echo()
    wrong.responses = lambda parts: parts.nothing
    add(pump, wrong).requests[0].say("a")
    assert isinstance(take(wire)[1], AttributeError)
    add(pump, good).requests[0].say("b", "stop")
    assert take(wire) == ("s", "b", True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pump_that_fails_ends_all_requests_and_takes_no_more(pump, wire):
    waiting = [add(pump, Echo(), sender=number) for number in range(3)]
    waiting[1].collect = lambda: 1 // 0
    wire.give_up = lambda sender, error: Wire.fail(wire, sender, error) if sender != 1 or "pump" in str(error) else 1 // 0
    waiting[1].requests[0].say("a")
    sent = [take(wire) for _ in range(2)]
    assert {sender for sender, _, _ in sent} == {0, 2} and all("pump: it has failed" in str(error) for _, error, _ in sent)
    assert all(job.closed and job.requests[0].cancelled for job in waiting)
    with pytest.raises(EngineError, match="pump: it has failed: ZeroDivisionError"):
        add(pump, Echo())


def test_requests_do_not_mix(pump, wire):
    jobs = [add(pump, Echo(stream=False), sender=number) for number in range(32)]
    for text in ("a", "b"):
        for number, job in enumerate(jobs):
            job.requests[0].say(f"{number}{text}", "stop" if text == "b" else None)
    assert {take(wire) for _ in jobs} == {(number, f"{number}a{number}b", True) for number in range(32)}
