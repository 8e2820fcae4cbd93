"""Loads an engine as its users will: `python -m slipway.runtime.trial ENGINE`.

Exit code 0 if it loads, or if only this machine keeps it from running; 2, with one sentence on stderr, if nobody could load it.
"""

from __future__ import annotations

import sys

from slipway.runtime.engine import Engine
from slipway.runtime.errors import EngineError, MachineError
from slipway.runtime.manifest import Manifest


def main(path: str) -> int:
    try:
        longest = Manifest.read(path).limits.max_sequence_length
        Engine.load(path, threads=1, kv_tokens=longest, verify=False).close()
    except MachineError:
        return 0
    except EngineError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
