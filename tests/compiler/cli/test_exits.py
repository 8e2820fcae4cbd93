"""Exit codes: 0, 2 for a user's mistake, 1 for ours, 130 after Ctrl-C; one message on stderr, no traceback."""

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slipway.compiler.cli import recipes
from slipway.compiler.errors import UserError
from slipway.runtime.errors import EngineError


@pytest.fixture
def failing(cli, monkeypatch):
    """Runs a command that raises the error."""

    def call(error):
        def rows():
            raise error

        monkeypatch.setattr(recipes, "_rows", rows)
        return cli("recipes")

    return call


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a.yaml:3: x", "1", "2", "x: 2"), "a.yaml:3: x: 1; expected 2\nhint: x: 2\n"),
        (EngineError("engine", "damaged", None, "build it again"), "engine: damaged; build it again\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "/tmp/x: No space left on device\n"),
        (MemoryError(), "memory: not enough for this\nhint: lower limits.kv_cache_tokens or limits.max_batch_tokens\n"),
    ],
)
def test_a_users_error(failing, error, message):
    outcome = failing(error)
    assert (outcome.code, outcome.out, outcome.err) == (2, "", message)


def test_a_bug_leaves_its_traceback_in_a_file(failing):
    outcome = failing(ZeroDivisionError("oops"))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("This is a bug in Slipway: ZeroDivisionError: oops\nPlease report it with ")
    file = Path(re.search(r"with (\S+),", outcome.err)[1])
    assert "Traceback (most recent call last)" in file.read_text()
    file.unlink()


def test_a_bug_shows_its_traceback_when_debugging(failing, monkeypatch):
    monkeypatch.setenv("SLIPWAY_DEBUG", "1")
    outcome = failing(ZeroDivisionError("oops"))
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err and "slipway-bug" not in outcome.err


def test_ctrl_c(failing):
    outcome = failing(KeyboardInterrupt())
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recipe"], "No such command 'recipe'"),
        (["run"], "Missing argument 'ENGINE'"),
        (["run", "engine", "hi", "--top-p", "2"], "Invalid value for '--top-p'"),
        (["run", "engine", "hi", "--system", "x"], "--system goes with --chat"),
        (["build", "demo-llama/cpu-int4"], "Missing option '-o'"),
    ],
)
def test_a_wrong_command_line(cli, arguments, expected):
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert expected in outcome.err and "Traceback" not in outcome.err


def test_unknown_variables_are_refused(cli, monkeypatch):
    monkeypatch.setenv("SLIPWAY_DEBUGG", "1")
    outcome = cli("recipes")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("environment: SLIPWAY_DEBUGG: unknown variable; expected one of SLIPWAY_DEBUG")


def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from slipway.compiler.cli import main; sys.argv[1:] = ['recipes', '--json']; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, b"")
