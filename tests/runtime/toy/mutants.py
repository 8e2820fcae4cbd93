"""Engines with one number of engine.json changed, signed anew: `python mutants.py ENGINE VALUES [STRIDE]` prints what became of each.

Every mutant loads and runs in a process of its own. A line is "ran", "refused" "failed", or a signal's name, then the number's path and its new value. VALUES: how many values each number takes. STRIDE: only every so many-th number.
"""

import copy
import functools
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import traceback

from slipway.runtime import manifest
from slipway.runtime.engine import Engine, SamplingParams
from slipway.runtime.errors import EngineError

SECONDS = 300  # after which a mutant hangs; a busy machine is slower than one would think
RAN, REFUSED, FAILED = 0, 2, 1


def numbers(value, path=()):
    """Paths of the numbers in a JSON value."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*path, key))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path


def changed(body, path, value):
    body = copy.deepcopy(body)
    functools.reduce(lambda place, key: place[key], path[:-1], body)[path[-1]] = value
    return body


def values(number):
    """The likeliest to do harm first."""
    return [value for value in (2 * number + 64, 0, number - 1, number + 1, -1, 1 << 31, 1 << 62) if value != number]


def run(directory):
    """Loads the engine and completes two prompts."""
    try:
        with Engine.load(directory, verify=False) as engine:
            longest = engine.manifest.limits.max_sequence_length
            prompts = [list(range(1, min(40, longest))), [5, 6, 7]]
            for completion in engine.generate(prompts, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)):
                assert all(0 <= token < engine.manifest.plan.vocab_size for token in completion.token_ids)
    except EngineError:
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return FAILED
    return RAN


def fate(directory):
    child = os.fork()  # this process has one thread: engines only live in children
    if child == 0:
        signal.alarm(SECONDS)
        os._exit(run(directory))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        return signal.Signals(-status).name
    return {RAN: "ran", REFUSED: "refused"}.get(status, "failed")


def main(engine, count, stride=1):
    body = json.loads((pathlib.Path(engine) / manifest.FILE_NAME).read_text())
    del body["checksum"]
    with tempfile.TemporaryDirectory() as folder:
        directory = shutil.copytree(engine, pathlib.Path(folder) / "engine")
        for path in list(numbers(body))[:: int(stride)]:
            for value in values(functools.reduce(lambda place, key: place[key], path, body))[: int(count)]:
                mutant = changed(body, path, value)
                text = json.dumps({"checksum": manifest._checksum(mutant), **mutant})
                (directory / manifest.FILE_NAME).write_text(text)
                print(fate(directory), ".".join(map(str, path)), value, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
