"""`--help` is part of the interface: one golden file a command, and each shows how to use it."""

import resource
import subprocess
import sys

import pytest
from slipway.compiler.cli.commands import SUMMARIES

COMMANDS = sorted(SUMMARIES)


def test_help(cli, golden):
    outcome = cli("--help")
    assert (outcome.code, outcome.err) == (0, "")
    golden("cli/slipway.txt", outcome.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(cli, golden, command):
    outcome = cli(command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert "Examples:\n" in outcome.out
    golden(f"cli/{command}.txt", outcome.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_needs_no_torch_to_be_looked_up(command):
    """Every command but build works where only the runtime is installed, so none may import torch on its way in."""
    heavy = {"torch", "numpy", "pydantic", "rich", "ruamel", "onnx", "jinja2"}
    code = f"import sys, slipway.compiler.cli.exits, slipway.compiler.cli.{command}; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_is_quick():
    """Processor time, so that a busy machine does not matter: 0.1 s."""
    code = "import sys; sys.argv[1:] = ['--help']; from slipway.compiler.cli import main; main()"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
