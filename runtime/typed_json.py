"""Dataclasses to JSON values and back; every type is checked and an error names the JSON path."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable

from slipway.runtime.errors import EngineError


def to_json(value):
    """Dataclasses become dicts, tuples lists; the rest stays."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(kind, value, where: str):
    """The value as `kind`: a dataclass, tuple[X, ...], dict, dict[str, X], X | None, int, float, str or bool.

    Raises EngineError at `where` plus the JSON path for a wrong type, an unknown key or a missing one.
    """
    return _reader(kind)(value, where)


@functools.cache
def _reader(kind) -> Callable:
    """(value, path) -> the value as `kind`. path: text, or a path and the key that follows it, made text where there is an error."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        read = _reader(next(option for option in arguments if option is not type(None)))
        return lambda value, path: None if value is None else read(value, path)
    if origin is tuple:
        read = _reader(arguments[0])
        return lambda value, path: tuple([read(item, (path, i)) for i, item in enumerate(_expect(list, value, path))])
    if origin is dict:
        read = _reader(arguments[1])
        return lambda value, path: {key: read(item, (path, key)) for key, item in _expect(dict, value, path).items()}
    if kind is float:
        return lambda value, path: float(value) if type(value) is int else _expect(float, value, path)
    return lambda value, path: _expect(kind, value, path)


def _dataclass_reader(kind) -> Callable:
    hints = typing.get_type_hints(kind)
    missing = dataclasses.MISSING
    readers = {f.name: _reader(hints[f.name]) for f in dataclasses.fields(kind)}
    required = {f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing}

    def read(value, path):
        _expect(dict, value, path)
        if not value.keys() <= readers.keys():
            unknown = next(name for name in value if name not in readers)
            raise EngineError(_text(path), f"unknown key {unknown!r}", f"one of {', '.join(readers)}")
        if not required <= value.keys():
            raise EngineError(_text(path), f"no key {next(name for name in readers if name in required - value.keys())!r}")
        return kind(**{name: readers[name](item, (path, name)) for name, item in value.items()})

    return read


def _expect(kind, value, path):
    if type(value) is not kind:  # bool is an int to isinstance
        raise EngineError(_text(path), f"found {type(value).__name__} {str(value)[:40]!r}", kind.__name__)
    return value


def _text(path) -> str:
    if isinstance(path, str):
        return path
    before, key = path
    return _text(before) + (f"[{key}]" if isinstance(key, int) else f".{key}")
