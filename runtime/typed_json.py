"""Dataclasses to JSON values and back; every type is checked and an error names the JSON path."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing

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
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        chosen = next(option for option in arguments if option is not type(None))
        return None if value is None else from_json(chosen, value, where)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(from_json(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        items = _expect(dict, value, where)
        return {key: from_json(arguments[1], item, f"{where}.{key}") for key, item in items.items()}
    if kind is float and type(value) is int:
        return float(value)
    return _expect(kind, value, where)


def _dataclass(kind, value, where: str):
    _expect(dict, value, where)
    types_by_name = _hints(kind)
    for name in value:
        if name not in types_by_name:
            raise EngineError(where, f"unknown key {name!r}", f"one of {', '.join(types_by_name)}")
    for name in _required(kind):
        if name not in value:
            raise EngineError(where, f"no key {name!r}")
    return kind(**{name: from_json(types_by_name[name], item, f"{where}.{name}") for name, item in value.items()})


@functools.cache
def _hints(kind) -> dict:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


@functools.cache
def _required(kind) -> tuple[str, ...]:
    missing = dataclasses.MISSING
    return tuple(f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing)


def _expect(kind, value, where: str):
    if type(value) is not kind:  # bool is an int to isinstance
        raise EngineError(where, f"found {type(value).__name__} {str(value)[:40]!r}", kind.__name__)
    return value
