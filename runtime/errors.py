"""Turns what is wrong with an engine, a machine or a request into one sentence."""

from __future__ import annotations


class EngineError(Exception):
    """Something the user can mend. One sentence: where, what was found, what was expected, what to do.

    where: a path, option or field. found / expected: one phrase each. hint: what to do, or None.
    """

    def __init__(self, where: str, found: str, expected: str | None = None, hint: str | None = None):
        self.where, self.found, self.expected, self.hint = where, found, expected, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.where}: {self.found}"
        if self.expected:
            line += f", expected {self.expected}"
        return line + (f"; {self.hint}" if self.hint else "")


class MachineError(EngineError):
    """An engine that this machine cannot run; another may."""


class RequestError(EngineError):
    """A request the engine will not or could not serve; the engine goes on."""
