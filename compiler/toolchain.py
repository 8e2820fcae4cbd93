"""The C++ compiler of this machine  ->  which one it is."""

from __future__ import annotations

import functools
import shlex
import subprocess

from slipway.compiler import env
from slipway.compiler.errors import UserError


def compiler_version() -> str:
    """First line of the compiler's --version, and what the command gives it besides. Raises UserError where it does not run."""
    return _version(tuple(env.cxx()))


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    try:
        lines = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(shlex.join(command), f"cannot run the C++ compiler ({error})", hint="apt-get install g++, or set SLIPWAY_CXX") from error
    if not lines:
        raise UserError(shlex.join(command), "no C++ compiler: --version says nothing", hint="apt-get install g++, or set SLIPWAY_CXX")
    return " ".join([lines[0], *command[1:]])
