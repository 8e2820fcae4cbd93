"""`slipway`: the command line. Its first import is this file; every command imports what it needs when it runs."""

import signal
import sys


def main() -> int:
    """Runs the command line; returns its exit code: 0, 2 for a user's error, 1 for ours, 130 after Ctrl-C, 143 after SIGTERM."""
    from slipway.compiler.cli.exits import run

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds: no draft, no server stays behind
    return run(sys.argv[1:])
