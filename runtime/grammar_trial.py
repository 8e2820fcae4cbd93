"""Compiles a grammar in a process of its own before this one does.

llguidance counts most of its work and gives up in time, but not all: the width of an intersection is an exponent, and deep
nesting overflows the stack. Here that ends a process that is there for it. One serves all engines; it ends with this one.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from slipway.runtime.errors import EngineError, RequestError

SECONDS = 2  # of processor time
PATIENCE_S = 30  # by the clock, on a machine that is busy or a process that is stopped
STACK_BYTES = 4 << 20  # half of what a thread usually has
MEMORY_BYTES = 2 << 30


class Trial:
    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        atexit.register(self.close)

    def run(self, library: str, special: Mapping[int, str], vocab_size: int, kind: str, text: str) -> None:
        """Raises RequestError for a text that does not compile, or not in bounds.

        library: llguidance's extension module. special: tokens that a grammar may name; no others matter to compiling.
        """
        with self._lock:
            error = self._ask(json.dumps([library, sorted(special.items()), vocab_size, kind, text]))
        if error is not None:
            raise RequestError("grammar", error)

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: str) -> str | None:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = start()
        process = self._process
        try:
            print(question, file=process.stdin, flush=True)
            if not comes(process.stdout, PATIENCE_S):
                self.close()
                return f"not compiled within {PATIENCE_S} s"
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        if process.wait() == -signal.SIGXCPU:
            return f"not compiled within {SECONDS} s"
        return "too deep or too large to compile"


def comes(stream, seconds: float) -> bool:
    """Whether there is something to read, or the end, within the time."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def start() -> subprocess.Popen:
    python = sys.executable or shutil.which("python3")  # a host that embeds Python may not know its own
    if not python:
        raise EngineError("grammar", "no Python to try it in", "python3 on PATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [python, "-m", __name__]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)


def answer(library: str, special: list, vocab_size: int, kind: str, text: str) -> str | None:
    """What is wrong with the grammar."""
    compiler = compiler_for(library, tuple(map(tuple, special)), vocab_size)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + SECONDS, resource.RLIM_INFINITY))
    try:
        compiler.compile(kind, text)
    except ValueError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=4)
def compiler_for(library: str, special: tuple[tuple[int, str], ...], vocab_size: int):
    """Of a vocabulary that has the special tokens and, in the other places, bytes."""
    from slipway.runtime import _native
    from slipway.runtime.vocabulary import Vocabulary

    names = dict(special)
    spare = (bytes([byte]) for byte in range(256))
    pieces = [names[token].encode() if token in names else next(spare, b"") for token in range(vocab_size)]
    return _native.GrammarCompiler(library, Vocabulary(pieces, [token in names for token in range(vocab_size)], False), vocab_size)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for question in sys.stdin:
        print(json.dumps(answer(*json.loads(question))), flush=True)


if __name__ == "__main__":
    main()
