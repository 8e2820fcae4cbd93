"""What passes between the benchmark and a process that serves one model: a JSON line a request on stdin, one an answer on stdout.

    {"prompts": [[id, ...], ...], "new_tokens": n}      all at once, greedy, past the end-of-sequence token
    {"arrivals": [[seconds, ...], ...]}                 when each new token of each prompt came, from when the request was read

The same for every contestant, and it runs under each one's own Python: nothing here is imported but the standard library.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

Stream = Callable[[list[int], int], AsyncIterator[int]]  # prompt, new tokens -> how many tokens came, each time some came
PATIENCE_S = 60  # for a process that is to end by itself


def serve(model: AbstractAsyncContextManager[Stream]) -> None:
    """A worker's main: answers until stdin ends. What else the process and its children print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(_serve(model, answers))


async def _serve(model: AbstractAsyncContextManager[Stream], answers) -> None:
    async with model as stream:
        for line in sys.stdin:  # holds up the loop, on which nothing else runs between requests
            request, started = json.loads(line), time.perf_counter()

            async def arrivals(prompt: list[int]) -> list[float]:
                times: list[float] = []
                async for count in stream(prompt, request["new_tokens"]):
                    times += [time.perf_counter() - started] * count
                return times

            found = await asyncio.gather(*map(arrivals, request["prompts"]))
            print(json.dumps({"arrivals": found}), file=answers, flush=True)


class WorkerError(Exception):
    """A worker ended, or answered otherwise than it should."""


class Worker:
    """A process that serves one model while the context is open. Afterwards none of its processes is left."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.command, self.environment, self.log = command, environment, log

    def __enter__(self) -> Worker:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                            env=os.environ | self.environment, start_new_session=True)  # fmt: skip
        return self

    def ask(self, prompts: list[list[int]], new_tokens: int) -> list[list[float]]:
        """Arrivals, `new_tokens` for each prompt. Raises WorkerError."""
        try:
            print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it has ended: there is no answer either
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.command[0]} ended: {self.log} says why")
        arrivals = json.loads(line)["arrivals"]
        if any(len(times) != new_tokens for times in arrivals):
            raise WorkerError(f"{self.command[0]}: {[len(times) for times in arrivals]} tokens came, {new_tokens} each were asked for")
        return arrivals

    def __exit__(self, failure, *_) -> None:
        with self.process:  # closes the pipes
            try:
                self.process.communicate(timeout=PATIENCE_S if failure is None else 0)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
