"""How a command ended  ->  its exit code, and one message on stderr: never a traceback for a user's mistake."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

import click

from slipway.compiler import env
from slipway.compiler.cli.commands import slipway
from slipway.compiler.errors import UserError
from slipway.runtime.errors import EngineError

OK, BUG, USER_ERROR, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
USERS_OS_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
                   errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    try:
        env.check()
        env.debug()
        with slipway.make_context("slipway", list(arguments)) as context:
            slipway.invoke(context)
        sys.stdout.flush()
        return OK
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        error.show()
        return USER_ERROR
    except (UserError, EngineError) as error:
        return _user_error(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return _broken_pipe()
    except Exception as error:
        return _unexpected(error)


def _user_error(message: str) -> int:
    click.echo(message, err=True)
    return USER_ERROR


def _broken_pipe() -> int:
    """Whoever read our output has gone; nothing may fail again when Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _unexpected(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in USERS_OS_ERRORS:
        return _user_error(f"{str(error.filename or 'disk'):.200}: {error.strerror}")
    if isinstance(error, MemoryError):
        return _user_error("memory: not enough for this\nhint: lower limits.kv_cache_tokens or limits.max_batch_tokens")
    click.echo(f"This is a bug in Slipway: {type(error).__name__}: {error}", err=True)
    if os.environ.get("SLIPWAY_DEBUG", "0") != "0":
        traceback.print_exception(error)
        return BUG
    with tempfile.NamedTemporaryFile("w", prefix="slipway-bug-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    click.echo(f"Please report it with {file.name}, which holds the traceback.", err=True)
    return BUG
