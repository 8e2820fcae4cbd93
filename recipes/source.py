"""YAML text  ->  plain values, and the place (file:line, or --set key=value) that each came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from slipway.compiler.errors import UserError
from slipway.recipes.problems import Key, UserErrors, dotted, shown

MAX_DEPTH = 16


@dataclass
class Document:
    """values: dicts, lists and scalars. places: for each key in it, where it was written."""

    values: Any
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where the key, or else the nearest thing around it, was written."""
        return self.places[self._nearest(key)]

    def order(self, key: Key) -> int:
        """Sorts keys as they were written."""
        return list(self.places).index(self._nearest(key))

    def _nearest(self, key: Key) -> Key:
        while key and key not in self.places:
            key = key[:-1]
        return key

    def at(self, key: Key) -> Any:
        value = self.values
        for part in key:
            value = value[part]
        return value


def read(path: Path) -> Document:
    """The document in a file. Raises UserError or, for several problems, UserErrors."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(str(path), error.strerror or str(error), "a recipe, a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"byte {error.start} is not UTF-8", "a recipe, a YAML file") from None
    document = parse(text, lambda line: f"{path}:{line}")
    if not isinstance(document.values, dict):
        found = "empty file" if document.values is None else shown(document.values)
        raise UserError(document.place(()), found, "a mapping that starts with schema: 1")
    return document


def set_value(document: Document, override: str) -> None:
    """Applies `--set key.path=value`; the value is YAML."""
    place = f"--set {override}"
    name, equals, text = override.partition("=")
    names = name.strip().split(".")
    if not equals or "" in names:
        raise UserError(place, "not an assignment", "key=value", "--set limits.max_sequences=8")
    addition = parse(text, lambda line: place)
    parent, key = _parent(document.values, names, place)
    parent[key[-1]] = addition.values
    kept = {k: v for k, v in document.places.items() if k[: len(key)] != key}
    made = {key[:depth]: place for depth in range(1, len(key))}
    document.places = made | kept | {key + k: v for k, v in addition.places.items()}


def _parent(value: Any, names: list[str], place: str) -> tuple[Any, Key]:
    """The mapping or list that holds the named key, and the key; missing mappings on the way are made."""
    key: Key = ()
    for depth, name in enumerate(names):
        key += (_index(value, name, f"{place}: {dotted(key)}") if isinstance(value, list) else name,)
        if not isinstance(value, dict | list):
            raise UserError(place, f"{dotted(key[:depth])} is {shown(value)}", "a mapping")
        if depth == len(names) - 1:
            break
        if isinstance(value, dict) and value.get(name) is None:
            value[name] = {}
        value = value[key[-1]]
    return value, key


def _index(items: list, name: str, where: str) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 9 and int(name) < len(items)):
        raise UserError(where, f"no item {name}", f"0 to {len(items) - 1}" if items else None)
    return int(name)


def parse(text: str, place: Callable[[int], str]) -> Document:
    """place(line) names a line, counted from 1."""
    reader = _Reader(place)
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, place) from None
    except RecursionError:
        raise UserError(place(1), "nested too deeply", f"at most {MAX_DEPTH} levels") from None
    except (YAMLError, ValueError, IndexError, AssertionError, NotImplementedError) as error:  # ruamel's own, on odd input
        raise UserError(place(1), "not YAML: " + " ".join(str(error).split())[:100], "a YAML mapping") from None
    document = Document(reader.value(node, ()) if node else None, {(): place(1)} | reader.places)
    UserErrors.check(reader.problems)
    return document


def _syntax_error(error: MarkedYAMLError, place: Callable[[int], str]) -> UserError:
    mark = error.problem_mark or error.context_mark
    where = place(mark.line + 1 if mark else 1)
    if "'\\t'" in (error.problem or ""):
        return UserError(where, "a tab", "spaces", "YAML is indented with spaces")
    context = f" ({error.context})" if error.context else ""
    return UserError(where, f"not YAML: {error.problem or 'malformed'}{context}")


class _Reader:
    """Walks YAML nodes; collects problems instead of raising at the first."""

    def __init__(self, place: Callable[[int], str]):
        self.place = place
        self.places: dict[Key, str] = {}
        self.problems: list[UserError] = []
        self.seen: set[int] = set()

    def value(self, node: Node, key: Key) -> Any:
        where = self.places.setdefault(key, self.place(node.start_mark.line + 1))
        if id(node) in self.seen:
            return self.problem(where, key, "an alias", "the value itself")
        if len(key) > MAX_DEPTH:
            return self.problem(where, key[:3], "nested too deeply", f"at most {MAX_DEPTH} levels")
        self.seen.add(id(node))
        match node:
            case MappingNode():
                return {name: self.value(child, key + (name,)) for name, child in self.items(node, key)}
            case SequenceNode():
                return [self.value(child, key + (index,)) for index, child in enumerate(node.value)]
            case ScalarNode():
                return self.scalar(node, key)

    def items(self, node: MappingNode, key: Key) -> Iterator[tuple[str, Node]]:
        for name, child in node.value:
            where = self.place(name.start_mark.line + 1)
            if not isinstance(name, ScalarNode):
                self.problem(where, key, "a key that is not a word", "key: value")
            elif (first := self.places.get(key + (name.value,))) is not None:
                self.problem(where, key + (name.value,), f"given twice, first at {first}", None, "remove one of them")
            else:
                self.places[key + (name.value,)] = where
                yield name.value, child

    def scalar(self, node: ScalarNode, key: Key) -> Any:
        kind = str(node.tag).rpartition(":")[2]
        try:
            return SCALARS[kind](node.value)
        except (KeyError, ValueError):
            found = f"{node.value[:40]!r} tagged {node.tag}" if kind not in SCALARS else f"{node.value[:40]!r}"
            return self.problem(self.places[key], key, found, "a plain value")

    def problem(self, where: str, key: Key, found: str, expected: str | None, hint: str | None = None) -> None:
        self.problems.append(UserError(f"{where}: {dotted(key)}" if key else where, found, expected, hint))


def _integer(text: str) -> int:
    return int(text, 0) if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else int(text)


SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
    "timestamp": str,
}
