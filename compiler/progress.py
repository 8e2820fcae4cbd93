"""The stages of long work  ->  a live display on a terminal, plain lines elsewhere; always on stderr.

    progress = for_stream(sys.stderr)
    progress.expect(["capture", "compile kernels"])
    with progress, progress.stage("compile kernels", total=12, unit="kernels") as stage:
        stage.advance()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from slipway.compiler.quantities import bytes_text, seconds_text

PLAIN_INTERVAL_S = 5.0


class Stage:
    """One stage under way. total: how many units it has, if known; expected_s: how long it should take, if known.

    `advance` may be called from any thread.
    """

    def __init__(self, name: str, total: float | None, unit: str, expected_s: float | None, clock: Callable[[], float]):
        self.name, self.total, self.unit, self.expected_s = name, total, unit, expected_s
        self.done = 0.0
        self.detail = ""
        self._clock, self._started, self._lock = clock, clock(), threading.Lock()
        self.on_change: Callable[[], None] = lambda: None

    def advance(self, amount: float = 1, detail: str = "") -> None:
        """detail: what is being worked on, a few words."""
        with self._lock:
            self.done += amount
            self.detail = detail or self.detail
            self.on_change()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started

    @property
    def fraction(self) -> float | None:
        if self.total:
            return min(self.done / self.total, 1.0)
        return min(self.elapsed_s / self.expected_s, 0.99) if self.expected_s else None

    @property
    def remaining_s(self) -> float | None:
        """An estimate from the pace so far, or from what was expected; None when there is nothing to go by."""
        if self.total and self.done > 0:
            return self.elapsed_s * max(self.total / self.done - 1, 0)
        return max(self.expected_s - self.elapsed_s, 0) if self.expected_s else None

    def status(self) -> str:
        """How far it is and how long it will take: "3 of 12 kernels, about 7.0 s left"."""
        words = [self._amount()] if self.total else []
        if self.remaining_s:
            words.append(f"about {seconds_text(self.remaining_s)} left")
        return ", ".join(words + [self.detail] * bool(self.detail))

    def _amount(self) -> str:
        if self.unit == "B":
            return f"{bytes_text(self.done)} of {bytes_text(self.total or 0)}"
        return f"{self.done:.0f} of {self.total:.0f} {self.unit}".rstrip()


class Progress:
    """Shows nothing; the displays derive from it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._names: list[str] = []

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def expect(self, names: Sequence[str]) -> None:
        """The stages to come, so that each can say which of how many it is."""
        self._names = list(names)

    @contextmanager
    def stage(self, name: str, total: float | None = None, unit: str = "", expected_s: float | None = None) -> Iterator[Stage]:
        stage = Stage(name, total, unit, expected_s, self._clock)
        self._begin(stage)
        try:
            yield stage
        except BaseException:
            self._end(stage, f"stopped after {seconds_text(stage.elapsed_s)}")
            raise
        self._end(stage, seconds_text(stage.elapsed_s))

    def note(self, text: str) -> None:
        """A line of its own."""

    def _begin(self, stage: Stage) -> None:
        pass

    def _end(self, stage: Stage, outcome: str) -> None:
        pass

    def _title(self, stage: Stage) -> str:
        if stage.name not in self._names:
            return stage.name
        return f"[{self._names.index(stage.name) + 1}/{len(self._names)}] {stage.name}"


class PlainProgress(Progress):
    """A line when a stage starts, when it ends, and every few seconds between."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._stream = stream

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _begin(self, stage: Stage) -> None:
        self.note(f"{self._title(stage)} ...")
        last_s = 0.0

        def tell() -> None:
            nonlocal last_s
            if stage.elapsed_s - last_s >= PLAIN_INTERVAL_S:
                last_s = stage.elapsed_s
                self.note(f"{self._title(stage)}: {stage.status()}")

        stage.on_change = tell

    def _end(self, stage: Stage, outcome: str) -> None:
        self.note(f"{self._title(stage)}: {outcome}")


class TerminalProgress(Progress):
    """A bar for the stage under way, above it a line for each that is done."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        from rich.console import Console
        from rich.progress import Progress as Display

        super().__init__(clock)
        self._display = Display(*_columns(), console=Console(file=stream, highlight=False), transient=True)

    def __enter__(self) -> Progress:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def note(self, text: str) -> None:
        self._display.console.print(text, markup=False)

    def _begin(self, stage: Stage) -> None:
        self._display.add_task("", total=None if stage.fraction is None else 1.0, stage=stage, title=self._title(stage))

    def _end(self, stage: Stage, outcome: str) -> None:
        for task in self._display.task_ids:
            self._display.remove_task(task)
        self.note(f"{self._title(stage)}: {outcome}")


def _columns() -> tuple:
    """What the display shows of a task; it asks the stage afresh at every refresh."""
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn
    from rich.text import Text

    class Title(ProgressColumn):
        def render(self, task):
            return Text(task.fields["title"])

    class Bar(BarColumn):
        def render(self, task):
            task.completed = task.fields["stage"].fraction or 0
            return super().render(task)

    class Status(ProgressColumn):
        def render(self, task):
            stage: Stage = task.fields["stage"]
            return Text(stage.status() or seconds_text(stage.elapsed_s), style="dim")

    return SpinnerColumn(), Title(), Bar(bar_width=24), Status()


def for_stream(stream: TextIO) -> Progress:
    """The display that suits a stream."""
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)
