"""Deltas concatenate to the final text, never hold half a character, and never leak a stop string."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.fsm.scan import Pattern
from palmette.runtime.detokenizer import Detokenizer, Ended

ALPHABET = "ab€😀é\n"
texts = st.text(ALPHABET, max_size=30)
stops = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes in tokens of the given sizes, then single bytes."""
    parts, at = [], 0
    for size in [*sizes, *[1] * len(data)]:
        if at < len(data):
            parts.append(data[at : at + size])
            at += size
    return parts


def drive(parts: list[bytes], stop: list[str], min_tokens: int = 0) -> tuple[list[str], str | None, Ended]:
    detokenizer = Detokenizer(lambda i: parts[i], stop)
    deltas: list[str] = []
    for i in range(len(parts)):
        delta = detokenizer.push(i, may_stop=i + 1 >= min_tokens)
        deltas.append(delta.text)
        if delta.matched is not None:
            return deltas, delta.matched, detokenizer.finish()
    return deltas, None, detokenizer.finish()


def first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The oracle: read character by character."""
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(texts, st.lists(st.integers(1, 6)), stops)
def test_the_text_is_cut_at_the_stop_string_that_completes_first(text: str, sizes: list[int], stop: list[str]) -> None:
    parts = cut(text.encode(), sizes)
    deltas, matched, ended = drive(parts, stop)
    wanted, wanted_match = first_stop(text, stop)
    assert "".join(deltas) + ended.text == wanted
    assert matched == wanted_match


@given(texts, st.lists(st.integers(1, 6)), stops)
def test_kept_tokens_and_tail_are_the_text(text: str, sizes: list[int], stop: list[str]) -> None:
    parts = cut(text.encode(), sizes)
    deltas, _, ended = drive(parts, stop)
    kept = b"".join(parts[: ended.num_tokens]).decode()  # strict: ends at a character boundary
    assert kept + ended.tail == "".join(deltas) + ended.text
    more = b"".join(parts[: ended.num_tokens + 1])
    if ended.num_tokens < len(parts):  # no further token lies wholly before the cut
        assert not (kept + ended.tail).encode().startswith(more) or not is_utf8(more)


@given(texts, st.lists(st.integers(1, 6)))
def test_without_stop_strings_nothing_is_held_back_but_half_characters(text: str, sizes: list[int]) -> None:
    parts = cut(text.encode(), sizes)
    detokenizer = Detokenizer(lambda i: parts[i])
    out = ""
    for i in range(len(parts)):
        out += detokenizer.push(i).text
        assert out == b"".join(parts[: i + 1]).decode("utf-8", "ignore")


@given(st.binary(max_size=20), st.lists(st.integers(1, 6)))
def test_invalid_bytes_come_out_as_replacement_characters_like_decoding_at_once(data: bytes, sizes: list[int]) -> None:
    deltas, _, ended = drive(cut(data, sizes), [])
    text = "".join(deltas) + ended.text
    whole = data.decode("utf-8", "replace")
    assert whole == text or whole == text + "\ufffd"  # an incomplete last character is dropped


@given(texts, st.lists(st.integers(1, 3)), stops, st.integers(0, 12))
def test_a_stop_string_that_completes_too_early_is_ordinary_text(
    text: str, sizes: list[int], stop: list[str], least: int
) -> None:
    parts = cut(text.encode(), sizes)
    deltas, matched, ended = drive(parts, stop, min_tokens=least)
    out = "".join(deltas) + ended.text
    assert text.startswith(out)
    if matched is None:
        assert out == text
    else:
        assert text.startswith(out + matched)
        assert len(deltas) >= least


def test_a_stop_string_over_three_tokens_leaves_no_trace() -> None:
    deltas, matched, ended = drive([b"one", b" E", b"N", b"D two"], [" END"])
    assert deltas == ["one", "", "", ""]
    assert matched == " END"
    assert ended == Ended(text="", num_tokens=1, tail="")


def test_what_was_held_back_comes_out_when_it_becomes_no_stop_string() -> None:
    deltas, matched, _ = drive([b"one", b" E", b"N", b"ough"], [" END"])
    assert deltas == ["one", "", "", " ENough"]
    assert matched is None


def test_what_is_held_back_at_the_end_belongs_to_the_text() -> None:
    deltas, _, ended = drive([b"one", b" EN"], [" END"])
    assert deltas == ["one", ""]
    assert ended == Ended(text=" EN", num_tokens=2, tail="")


def test_a_token_cut_by_a_stop_string_leaves_its_kept_part_as_tail() -> None:
    deltas, matched, ended = drive([b"one", b" two. three"], ["."])
    assert deltas == ["one", " two"]
    assert matched == "."
    assert ended == Ended(text="", num_tokens=1, tail=" two")


def test_half_a_character_at_the_end_is_dropped_with_its_tokens() -> None:
    euro = "€".encode()
    deltas, _, ended = drive([b"a", b"b" + euro[:1], euro[1:2]], [])
    assert deltas == ["a", "b", ""]
    assert ended == Ended(text="", num_tokens=1, tail="b")


def test_a_character_in_three_tokens_comes_out_with_the_last() -> None:
    euro = "€".encode()
    deltas, _, ended = drive([euro[:1], euro[1:2], euro[2:], b"!"], [])
    assert deltas == ["", "", "€", "!"]
    assert ended.num_tokens == 4


def test_special_tokens_have_no_text() -> None:
    deltas, _, ended = drive([b"a", b"", b"b"], [])
    assert deltas == ["a", "", "b"]
    assert ended == Ended(text="", num_tokens=3, tail="")


def test_of_two_stop_strings_completing_together_the_longer_wins() -> None:
    _, matched, ended = drive([b"xab"], ["b", "ab"])
    assert matched == "ab"
    assert ended.tail == "x"


def test_a_token_behind_a_match_is_a_mistake_of_ours() -> None:
    detokenizer = Detokenizer(lambda i: b".", ["."])
    detokenizer.push(0)
    with pytest.raises(AssertionError, match="behind a stop"):
        detokenizer.push(1)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(texts, st.lists(st.integers(1, 6)), st.sampled_from(["ab", "a+b", "€|éa", "[ab]{2}"]), st.integers(0, 4))
def test_a_stop_pattern_cuts_where_its_first_match_completes(
    text: str, sizes: list[int], pattern: str, min_tokens: int
) -> None:
    parts = cut(text.encode(), sizes)
    detokenizer = Detokenizer(lambda i: parts[i], (), [Pattern(pattern).scanner()])
    out, matched = "", None
    ends = 0  # characters that were complete before the hole could stop
    for i in range(len(parts)):
        may_stop = i + 1 >= min_tokens
        if not may_stop:
            ends = len(b"".join(parts[: i + 1]).decode("utf-8", "ignore"))
        delta = detokenizer.push(i, may_stop=may_stop)
        out, matched = out + delta.text, delta.matched
        if matched is not None:
            break
    ended = detokenizer.finish()
    found = [
        (end, start)
        for end in range(ends + 1, len(text) + 1)
        for start in range(end)
        if re.fullmatch(pattern, text[start:end])
    ]
    assert (matched is not None) == bool(found)
    if found:
        assert text.startswith(out)
        assert min(found)[1] <= len(out) <= min(found)[0]
        if min_tokens <= 1:
            assert out == text[: min(found)[1]]
    else:
        assert out + ended.text == text
