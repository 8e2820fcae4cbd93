"""Runs a function on many items with a few threads. (concurrent.futures imports for longer than an engine loads.)"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence


def for_each(function: Callable, items: Sequence, num_threads: int) -> list:
    """Results in the order of the items. The first exception ends the work and is raised."""
    results: list = [None] * len(items)
    remaining = iter(range(len(items)))  # next() on it is atomic under the GIL
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in remaining:
                if errors:
                    return
                results[number] = function(items[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(num_threads, len(items)) - 1)]
    started = []
    with contextlib.suppress(RuntimeError):  # where the system gives no more threads, those there are do the work
        for thread in threads:
            thread.start()
            started.append(thread)
    work()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]
    return results
