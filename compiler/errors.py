"""Turns what went wrong into one message: a user's mistake (exit code 2) or ours (exit code 1)."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: a recipe, a checkpoint, a machine.

    where: file:line, path or option. found / expected: one phrase each. hint: what to do, or None.
    """

    def __init__(self, where: str, found: str, expected: str | None = None, hint: str | None = None):
        self.where, self.found, self.expected, self.hint = where, found, expected, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.found}"
        if self.expected:
            line += f"; expected {self.expected}"
        return line + (f"\nhint: {self.hint}" if self.hint else "")


class InternalError(Exception):
    """A promise inside Slipway that does not hold: always a bug of ours."""
