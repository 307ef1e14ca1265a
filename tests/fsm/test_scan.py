"""Searching a text while it is written, against `re` on the whole of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.fsm.scan import Pattern

PATTERNS = ["ab", "a+b", "(ab|ba)c?", "[0-9]{2}", "a.c", "é+x", "(a|b)*c", "\n\n|;", "b(a|aa)b"]


def first_match(pattern: str, text: str) -> tuple[int, int] | None:
    """(end, start) of the match that ends first; of those, the one that begins first."""
    found = [
        (end, start)
        for end in range(1, len(text) + 1)
        for start in range(end)
        if re.fullmatch(pattern, text[start:end])
    ]
    return min(found, default=None)


@given(st.sampled_from(PATTERNS), st.text("abc0;é\nx", max_size=14))
@settings(max_examples=400, deadline=None)
def test_it_finds_the_match_that_ends_first(pattern: str, text: str) -> None:
    scanner = Pattern(pattern).scanner()
    expected = first_match(pattern, text)
    for at, char in enumerate(text):
        open_from = scanner.open_from
        start = scanner.push(char)
        if start is not None:
            assert expected == (at + 1, start)
            assert start >= open_from or start == at
            return
    assert expected is None


@given(st.sampled_from(PATTERNS), st.text("abc0;é\nx", max_size=10), st.text("abc0;é\nx", max_size=6))
@settings(max_examples=300, deadline=None)
def test_what_is_let_go_is_never_part_of_a_match(pattern: str, before: str, after: str) -> None:
    scanner = Pattern(pattern).scanner()
    if any(scanner.push(char) is not None for char in before):
        return
    let_go = scanner.open_from
    for char in after:
        start = scanner.push(char)
        if start is not None:
            assert start >= let_go
            return


def test_attempts_do_not_pile_up() -> None:
    scanner = Pattern("a*a*a*a*b").scanner()
    for _ in range(5000):
        assert scanner.push("a") is None
    assert scanner.push("b") == 0


@pytest.mark.parametrize("pattern", ["a*", "", "^a", "a$", r"\Aa", "(|b)"])
def test_a_pattern_that_cannot_be_looked_for_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidOption, match="stop_regex"):
        Pattern(pattern)


def test_dollars_and_carets_may_stand_for_themselves() -> None:
    scanner = Pattern(r"[$^]\$").scanner()
    assert scanner.push("$") is None
    assert scanner.push("$") == 0


def test_a_construct_outside_the_dialect_is_refused() -> None:
    with pytest.raises(UnsupportedConstraint):
        Pattern(r"(a)\1")
