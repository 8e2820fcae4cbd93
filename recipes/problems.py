"""What pydantic found wrong with a recipe  ->  `file:line: key: found; expected …`, several at once."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from slipway.compiler.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from slipway.recipes.source import Document

Key = tuple[str | int, ...]
MAX_REPORTED = 10


class UserErrors(UserError):
    """Several user errors, reported together."""

    def __init__(self, errors: Sequence[UserError]):
        self.errors = tuple(errors)
        super().__init__(errors[0].where, errors[0].found, errors[0].expected, errors[0].hint)

    def __str__(self) -> str:
        lines = [str(error) for error in self.errors[:MAX_REPORTED]]
        more = len(self.errors) - MAX_REPORTED
        return "\n".join(lines + [f"and {more} more"] * (more > 0))

    @classmethod
    def check(cls, errors: Sequence[UserError]) -> None:
        """Raises the errors, if there are any."""
        if errors:
            raise errors[0] if len(errors) == 1 else cls(errors)


@dataclass(frozen=True)
class Expects:
    """What a field takes, in words; stands in its Annotated type where the type alone does not say it well."""

    phrase: str


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def shown(value: Any) -> str:
    """A value as a phrase of an error message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "...")
    return str(value)[:60]


def did_you_mean(word: str, words: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else None


def one_of(words: Sequence[Any]) -> str:
    """bf16, int8 or int4"""
    texts = [str(word) for word in words]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def translate(error: ValidationError, model: type[BaseModel], document: Document) -> list[UserError]:
    """One UserError a key, in the order they were written."""
    found: dict[Key, UserError] = {}
    for detail in error.errors(include_url=False):
        key, owner, annotation, metadata = _field(model, detail["loc"])
        where = f"{document.place(key)}: {dotted(key)}" if key else document.place(key)
        if detail["type"] == "rule":
            problem = UserError(where, **detail["ctx"])
        elif detail["type"] == "missing":
            problem = UserError(where, "missing", _phrase(annotation, metadata))
        elif detail["type"] == "extra_forbidden":
            names = _names(owner)
            problem = UserError(where, "unknown key", one_of(names), did_you_mean(str(key[-1]), names))
        else:
            value = document.at(key)
            close = did_you_mean(value, map(str, _choices(annotation))) if isinstance(value, str) else None
            problem = UserError(where, shown(value), _phrase(annotation, metadata), close)
        found.setdefault(key, problem)
    return [found[key] for key in sorted(found, key=document.order)]


def _field(model: type[BaseModel], loc: Key) -> tuple[Key, type[BaseModel], Any, Sequence[Any]]:
    """The key, its model and its type for a pydantic location, which also names the members of a union."""
    owner, annotation, metadata, depth = model, model, (), 0
    for part in loc:
        if _is_model(annotation):
            owner = annotation
            field = {info.alias or name: info for name, info in owner.model_fields.items()}.get(part)
            annotation, metadata = (field.annotation, field.metadata) if field else (None, ())
        elif typing.get_origin(annotation) is tuple:
            annotation, metadata = typing.get_args(annotation)[0], ()
        else:
            break
        depth += 1
    return loc[:depth], owner, annotation, metadata


def _is_model(annotation: Any) -> bool:
    return hasattr(annotation, "model_fields")


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _choices(annotation: Any) -> list[Any]:
    """The literals a type allows."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for member in typing.get_args(annotation) for choice in _choices(member)]
    return list(typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else []


def _phrase(annotation: Any, metadata: Sequence[Any]) -> str:
    for item in metadata:
        if isinstance(item, Expects):
            return item.phrase
    if _is_model(annotation):
        return f"a mapping of {', '.join(_names(annotation))}"
    if choices := _choices(annotation):
        return one_of(choices)
    if typing.get_origin(annotation) is tuple:
        return "a list"
    plain = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not type(None)]
    return {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[plain[0]]
