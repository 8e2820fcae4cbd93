"""The bytes of every token, read out of a tokenizer, for the detokenizer in C++.

Byte-level BPE (GPT-2's alphabet), SentencePiece with byte fallback and Metaspace are known; for any other decoder a
token's bytes are what the tokenizer decodes it to alone. A build keeps the result in tokenizer/vocabulary.bin, little-endian: magic,
u32 tokens, u8 strip_leading_space, u32 length and u8 special of each token, then the bytes of one after the other.
"""

from __future__ import annotations

import array
import itertools
import json
import pathlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slipway.runtime.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "vocabulary.bin"
HEADER = struct.Struct("<8sIB")
MAGIC = b"slipvoc1"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """special[t]: left out of the text when a request skips special tokens."""

    pieces: list[bytes]
    special: list[bool]
    strip_leading_space: bool

    def text(self, token: int) -> str:
        """Of one token alone; U+FFFD for parts of a character."""
        return self.pieces[token].decode("utf-8", "replace") if token < len(self.pieces) else ""

    def write(self, path: pathlib.Path) -> None:
        lengths = array.array("I", map(len, self.pieces))
        header = HEADER.pack(MAGIC, len(self.pieces), self.strip_leading_space)
        path.write_bytes(header + lengths.tobytes() + bytes(self.special) + b"".join(self.pieces))

    @classmethod
    def read(cls, path: pathlib.Path) -> Vocabulary:
        """Raises EngineError for a file that is not whole."""
        data = path.read_bytes()
        magic, size, strips = HEADER.unpack_from(data) if len(data) >= HEADER.size else (b"", 0, 0)
        start = HEADER.size + 5 * size
        if magic != MAGIC or len(data) < start:
            raise EngineError(str(path), "not a vocabulary", hint="the engine is damaged: copy or build it again")
        lengths = array.array("I", data[HEADER.size : HEADER.size + 4 * size])
        ends = list(itertools.accumulate(lengths, initial=start))
        if ends[-1] != len(data):
            raise EngineError(str(path), f"{len(data)} bytes", f"{ends[-1]}", "the engine is damaged: copy or build it again")
        pieces = [data[begin:end] for begin, end in itertools.pairwise(ends)]
        return cls(pieces, list(map(bool, data[start - size : start])), bool(strips))


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if step}
    to_bytes = _reader(steps, tokenizer)
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    size = max(vocab.values(), default=-1) + 1
    pieces, special = [b""] * size, [False] * size
    added = tokenizer.get_added_tokens_decoder()
    for piece, token in vocab.items():
        pieces[token] = added[token].content.encode() if token in added else to_bytes(piece)
    for token, entry in added.items():
        special[token] = entry.special
    return Vocabulary(pieces, special, _strips(steps))


def _reader(steps: dict, tokenizer: Tokenizer):
    if "ByteLevel" in steps:
        table = byte_level_alphabet()
        return lambda piece: piece.translate(table).encode("latin-1")
    if "ByteFallback" in steps or "Metaspace" in steps:
        space = steps.get("Metaspace", {}).get("replacement", "▁")
        return lambda piece: _sentencepiece(piece, space)
    if not steps:
        return str.encode
    return lambda piece: tokenizer.decode([tokenizer.token_to_id(piece)], skip_special_tokens=False).encode()


def _sentencepiece(piece: str, space: str) -> bytes:
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(space, " ").encode()


def _strips(steps: dict) -> bool:
    """Whether decoding drops the space that encoding put before the text."""
    metaspace = steps.get("Metaspace")
    return "Strip" in steps or (metaspace is not None and metaspace.get("prepend_scheme") != "never")


def byte_level_alphabet() -> dict[int, str]:
    """GPT-2's: printable bytes stand for themselves, the others for the characters from U+0100 on. -> for str.translate"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {**{byte: chr(byte) for byte in printable}, **{0x100 + i: chr(byte) for i, byte in enumerate(others)}}
