"""Progress: plain lines elsewhere, a display on a terminal, an estimate of the time left."""

import io

import pytest
from slipway.compiler.progress import PlainProgress, Progress, Stage, TerminalProgress, for_stream
from slipway.compiler.quantities import bytes_text, seconds_text, tokens_text


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_plain_lines(clock):
    stream = io.StringIO()
    progress = PlainProgress(stream, clock)
    progress.expect(["capture", "pack weights"])
    with progress, progress.stage("pack weights", total=4e9, unit="B") as stage:
        for _ in range(4):
            clock.now_s += 3
            stage.advance(1e9, "layer 1")
        progress.note("a note")
    assert stream.getvalue().splitlines() == [
        "[2/2] pack weights ...",
        "[2/2] pack weights: 2 GB of 4 GB, about 6.0 s left, layer 1",
        "[2/2] pack weights: 4 GB of 4 GB, layer 1",
        "a note",
        "[2/2] pack weights: 12.0 s",
    ]


def test_a_stage_that_fails_says_so(clock):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), PlainProgress(stream, clock).stage("capture"):
        clock.now_s += 2
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1] == "capture: stopped after 2.0 s"


def test_estimates(clock):
    stage = Stage("x", 10, "kernels", None, clock)
    assert (stage.fraction, stage.remaining_s) == (0, None)
    clock.now_s = 4
    stage.advance(2)
    assert (stage.fraction, stage.remaining_s, stage.status()) == (0.2, 16, "2 of 10 kernels, about 16.0 s left")
    known = Stage("capture", None, "", 20, clock)
    clock.now_s += 5
    assert (known.fraction, known.remaining_s) == (0.25, 15)
    clock.now_s += 50
    assert (known.fraction, known.remaining_s) == (0.99, 0)
    assert Stage("x", None, "", None, clock).status() == ""


def test_the_display_of_a_terminal():
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        with progress.stage("compile", total=2, unit="kernels") as stage:
            stage.advance()
            progress.note("[why] compile: changed")
        with progress.stage("capture"):
            pass
    assert "[why] compile: changed" in stream.getvalue() and "compile: " in stream.getvalue()


def test_a_silent_progress_does_nothing(capsys):
    with Progress() as progress, progress.stage("x", total=1) as stage:
        stage.advance()
        progress.note("x")
    assert capsys.readouterr() == ("", "")


def test_the_display_suits_the_stream():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert isinstance(for_stream(terminal), TerminalProgress)
    assert isinstance(for_stream(io.StringIO()), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3e-6, "3 µs"), (0.0123, "12.3 ms"), (1, "1.0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")]
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1190, "1.19 kB"), (999_999, "1 MB"), (2.5e12, "2.5 TB")])
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize("rate, text", [(9.4111, "9.41 tokens/s"), (310.2, "310 tokens/s"), (999.4, "999 tokens/s"), (11304.0, "11,304 tokens/s")])
def test_tokens(rate, text):
    assert tokens_text(rate) == text
