"""Reading JSON while it grows: what is closed is there, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.interpreter.partial import PartialJson

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def steps(pieces: list[str]) -> list[Any]:
    """What is closed after each piece that closed something."""
    reader = PartialJson()
    return [reader.snapshot() for piece in pieces if reader.feed(piece)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (['{"a": 1', "2", ', "b": ', "tru", "e}"], [{"a": 12}, {"a": 12, "b": True}]),
        (['{"a": "x', 'y"', ', "b": ["', 'p", "q"', "]}"],
         [{"a": "xy"}, {"a": "xy", "b": ["p", "q"]}, {"a": "xy", "b": ["p", "q"]}]),
        (["[[1, 2], [3", ", 4"], [[[1, 2]], [[1, 2], [3]]]),
        (['{"a": {"b": {', '"c": null', "}"], [{"a": {"b": {"c": None}}}]),
        (['{"a\\', '"b": "\\u00', 'e4\\n"', "}"], [{'a"b': "ä\n"}, {'a"b': "ä\n"}]),
        (['"whole', '"'], ["whole"]),
        (["{", "}"], [{}]),
        (["[", "[", "]"], [[[]]]),
    ],
)  # fmt: skip
def test_what_is_closed_after_each_piece(pieces: list[str], expected: list[Any]) -> None:
    assert steps(pieces) == expected


def test_a_number_at_the_top_is_closed_by_the_end() -> None:
    reader = PartialJson()
    assert not reader.feed("12")
    assert reader.snapshot() is None
    assert reader.finish()
    assert reader.snapshot() == 12


def test_an_open_string_or_number_is_not_there() -> None:
    reader = PartialJson()
    reader.feed('{"name": "Ad')
    assert reader.snapshot() is None
    reader.feed('a", "age": 3')
    assert reader.snapshot() == {"name": "Ada"}
    assert not reader.finish()


@given(values, st.integers(1, 5), st.booleans())
@settings(max_examples=200, deadline=None)
def test_whole_texts_are_read_like_json_loads(value: Any, size: int, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    reader = PartialJson()
    for start in range(0, len(text), size):
        reader.feed(text[start : start + size])
    reader.finish()
    assert reader.snapshot() == value


@given(values, st.data())
@settings(max_examples=200, deadline=None)
def test_parts_only_grow(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    cut = data.draw(st.integers(0, len(text)))
    reader = PartialJson()
    reader.feed(text[:cut])
    assert is_part(reader.snapshot(), value)


def is_part(part: Any, whole: Any) -> bool:
    """Whether `whole` can still come of `part`."""
    if part is None:
        return True
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(inner, whole[key]) for key, inner in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(is_part(a, b) for a, b in zip(part, whole, strict=False))
    return bool(part == whole)


def test_snapshots_are_the_readers_own() -> None:
    reader = PartialJson()
    reader.feed("[1, ")
    first = reader.snapshot()
    reader.feed("2, ")
    assert first == [1]
    first.append(9)
    assert reader.snapshot() == [1, 2]


def test_depth_costs_no_recursion_and_length_is_linear() -> None:
    deep = PartialJson()
    deep.feed("[" * 50_000 + "1" + "]" * 50_000)
    assert deep.snapshot() is not None

    def seconds(count: int) -> float:
        pieces = ["[", *(f'"{i}", ' for i in range(count))]
        start = time.thread_time()  # of this thread alone: others may be busy
        reader = PartialJson()
        for piece in pieces:
            reader.feed(piece)
        return time.thread_time() - start

    seconds(100)
    assert min(seconds(20_000) for _ in range(3)) < 40 * min(seconds(2_000) for _ in range(3))


def test_a_number_too_long_for_python_is_read_as_a_float() -> None:
    reader = PartialJson()
    reader.feed("[" + "9" * 5000 + ", ")
    assert reader.snapshot() == [float("inf")]
