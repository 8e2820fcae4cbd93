"""`slipway`: the command line. Its first import is this file; every command imports what it needs when it runs."""

import sys


def main() -> int:
    """Runs the command line; returns its exit code: 0, 2 for a user's error, 1 for ours, 130 after Ctrl-C."""
    from slipway.compiler.cli.exits import run

    return run(sys.argv[1:])
