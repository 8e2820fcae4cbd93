"""What a completion must match: a JSON schema, a regular expression, one of several texts, a context-free grammar.

A Grammar is text, checked for little; an engine compiles it for its vocabulary when a request with it is submitted, on the
caller's thread. The work is llguidance's (https://github.com/guidance-ai/llguidance), called from C++ alone.
"""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slipway.runtime.errors import EngineError, RequestError
from slipway.runtime.grammar_trial import Trial
from slipway.runtime.vocabulary import Vocabulary

LONGEST = 1 << 18  # characters of a grammar
# A space, or a new line and its indentation. Bounded: models tend to go on with spaces for ever.
WHITESPACE = r" |\n[ \t]{0,32}"
TRIAL = Trial()
KEPT = 16  # compiled grammars of an engine
VERSIONS = "1.9."  # of llguidance: those with the C interface of runtime/native/llguidance.hpp


@dataclass(frozen=True)
class Grammar:
    """Made by one of its class methods, which raise RequestError. kind: as the compiler names it."""

    kind: str
    text: str

    def __post_init__(self):
        check(self.text)

    @classmethod
    def json_schema(cls, schema: str | Mapping, whitespace: str = WHITESPACE) -> Grammar:
        """A JSON value that fits the schema, with properties in the schema's order; {} is any value.

        whitespace: a regex of what may stand between its tokens, or nothing; the schema's own "x-guidance" goes before it.
        """
        if isinstance(schema, str):
            schema = parse(schema)
        if not isinstance(schema, Mapping):
            raise RequestError("grammar", f"{schema!r:.40}", "a JSON schema")
        try:
            return cls("json_schema", json.dumps({"x-guidance": {"whitespace_pattern": whitespace}, **schema}))
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError("grammar", f"not JSON: {error}") from None

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """The whole completion matches the pattern, in the syntax of Rust's regex crate: no look-around, no back-references."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of the texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise RequestError("grammar", f"choice of {texts!r:.40}", "a list of non-empty strings")
        return cls("regex", "|".join("".join(map(literal, text)) for text in texts))

    @classmethod
    def ebnf(cls, text: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark, from rule `start`, or in llama.cpp's GBNF, from rule `root`."""
        from llguidance.gbnf_to_lark import any_to_lark

        check(text)
        try:
            return cls("lark", any_to_lark(text))
        except Exception as error:  # it raises nothing narrower
            raise RequestError("grammar", f"not GBNF: {error}") from None


def check(text: object) -> None:
    if not isinstance(text, str) or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError("grammar", f"{text!r:.40}", "text, without NUL or lone surrogates")
    if len(text) > LONGEST:
        raise RequestError("grammar", f"{len(text)} characters", f"at most {LONGEST}")


def parse(text: str) -> object:
    """A schema's JSON."""
    check(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError("grammar", f"not JSON: {error}") from None


def literal(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


class GrammarCompiler:
    """Of one vocabulary; made ready by the first grammar. Keeps the last few it compiled, which stay warm. Any thread."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int):
        self.vocabulary, self.vocab_size = vocabulary, vocab_size
        self._native, self._special = None, {}
        self._kept: collections.OrderedDict[Grammar, object] = collections.OrderedDict()
        self._lock = threading.Lock()  # over all three

    def compile(self, grammar: Grammar):
        """slipway.runtime._native.Grammar. Raises RequestError."""
        with self._lock:
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
                return self._kept[grammar]
            self._native = self._native or self._start()
        TRIAL.run(library(), self._special, self.vocab_size, grammar.kind, grammar.text)
        try:
            compiled = self._native.compile(grammar.kind, grammar.text)
        except ValueError as error:
            raise RequestError("grammar", str(error)) from None
        with self._lock:
            self._kept[grammar] = compiled
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _start(self):
        from slipway.runtime import _native

        if not self.vocabulary.pieces:
            raise RequestError("grammar", "the engine has no tokenizer", "none")
        flagged = enumerate(zip(self.vocabulary.pieces, self.vocabulary.special, strict=True))
        self._special = {token: piece.decode("utf-8", "replace") for token, (piece, special) in flagged if special}
        return _native.GrammarCompiler(library(), self.vocabulary, self.vocab_size)


def library() -> str:
    """The path of llguidance's extension module."""
    import llguidance

    if not llguidance.__version__.startswith(VERSIONS):
        raise EngineError("llguidance", f"version {llguidance.__version__}", f"{VERSIONS}x")
    return llguidance._lib.__file__
