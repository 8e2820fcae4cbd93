"""Streamed text equals the text decoded at once, whatever the token borders."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from slipway.runtime._native import core
from slipway.runtime.vocabulary import Vocabulary

SNIPPETS = ["a", "b", "ab", " ", "é", "€", "😀", "\n"]
BYTES = st.one_of(
    st.sampled_from(SNIPPETS).map(str.encode),
    st.sampled_from([b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f", b"\x80", b"\xed\xa0\x80", b"\xe0\x80", b"\xf4\x90", b"\xc0\xaf"]),
    st.binary(max_size=4),
)
TEXTS = st.lists(BYTES, max_size=12).map(b"".join)


def stream(pieces, special=(), strip=False, **options):
    table = Vocabulary(list(pieces), [i in special for i in range(len(pieces))], strip)
    return core.TextStream(core.Vocabulary(table), options.pop("stop", []), **options)


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    ends = sorted(border % (len(data) + 1) for border in borders)
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def run(stream, tokens) -> tuple[list[str], bool]:
    parts = []
    for token in tokens:
        text, stopped = stream.push(token)
        parts.append(text)
        if stopped:
            return [*parts, stream.finish()], True
    return [*parts, stream.finish()], False


def first_stop(data: bytes, stops: list[bytes]):
    """(begin, end) of the stop string that is complete first; the longest of those that are complete at the same byte."""
    for end in range(1, len(data) + 1):
        ending = [len(stop) for stop in stops if data[:end].endswith(stop)]
        if ending:
            return end - max(ending), end
    return None


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 100), max_size=12))
@example("😀".encode(), [1, 2, 3])
def test_equals_decoding_at_once(data, borders):
    pieces = cut(data, borders)
    parts, _ = run(stream(pieces), range(len(pieces)))
    assert "".join(parts) == data.decode("utf-8", "replace")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20), st.lists(st.integers(0, 100), max_size=12))
def test_every_complete_character_is_out_at_once(text, borders):
    pieces = cut(text.encode(), borders)
    parts, _ = run(stream(pieces), range(len(pieces)))
    for i in range(len(pieces)):
        assert "".join(parts[: i + 1]) == b"".join(pieces[: i + 1]).decode("utf-8", "ignore")


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(SNIPPETS), max_size=16).map("".join),
    st.lists(st.integers(0, 100), max_size=12),
    st.lists(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4).map("".join), max_size=3),
    st.booleans(),
)
@example("aab", [1, 2], ["ab"], False)
@example("abab ababa", [3], ["ababa"], True)
def test_stop_strings_across_token_borders(text, borders, stops, include):
    data = text.encode()
    pieces = cut(data, borders)
    parts, stopped = run(stream(pieces, stop=stops, include_stop=include), range(len(pieces)))
    found = first_stop(data, [stop.encode() for stop in stops])
    assert stopped == (found is not None)
    kept = data[: found[include]] if found else data
    assert "".join(parts) == kept.decode()


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 100), max_size=12))
def test_stop_strings_among_malformed_bytes(data, borders):
    pieces = cut(data, borders)
    parts, stopped = run(stream(pieces, stop=["ab", "€"]), range(len(pieces)))
    found = first_stop(data, [b"ab", "€".encode()])
    assert stopped == (found is not None)
    assert "".join(parts) == (data[: found[0]] if found else data).decode("utf-8", "replace")


def test_nothing_that_may_begin_a_stop_string_goes_out_early():
    parts, stopped = run(stream([b"one <", b"/en", b"d", b"> two"], stop=["</end>"]), range(4))
    assert stopped and parts == ["one ", "", "", "", ""]
    parts, _ = run(stream([b"one <", b"/en", b"x"], stop=["</end>"]), range(3))
    assert parts == ["one ", "", "</enx", ""]


def test_min_tokens_lets_a_stop_string_pass():
    text = stream([b"ab", b"c"], stop=["ab", "bc"])
    assert text.push(0, may_stop=False) == ("ab", False)
    assert text.push(1) == ("c", False)
    assert text.push(0) == ("", True)


def test_special_tokens_and_the_first_space():
    pieces = [b"<s>", b" Hello", b" world"]
    assert "".join(run(stream(pieces, {0}, strip=True), [0, 1, 2, 0])[0]) == "Hello world"
    assert "".join(run(stream(pieces, {0}, skip_special_tokens=False), [0, 1])[0]) == "<s> Hello"
    assert "".join(run(stream(pieces), [99, 1])[0]) == " Hello"  # beyond the table: padding of the LM head
