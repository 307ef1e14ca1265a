"""The text of one request as it is read: prefix, reasoning, answer, end, whatever pieces it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.formats.reasoning import ReasoningFormat
from palmette.interpreter.reading import HoleText
from palmette.interpreter.reasoning import ReasoningSplitter

FORM = ReasoningFormat("<t>", "</t>")


class Shouting:
    """Holds one character back."""

    def __init__(self) -> None:
        self.held = ""

    def feed(self, text: str) -> str:
        whole = (self.held + text).upper()
        self.held = whole[-1:]
        return whole[:-1]

    def finish(self) -> str:
        return self.held


def read(pieces: list[str]) -> tuple[str, str, str, str, str | None]:
    """(written, thought, shown, answer, matched) of a text with a prefix of two characters."""
    text = HoleText(2, ReasoningSplitter(FORM, inside=False, exact=True), (" ", "\n"), Shouting())
    deltas = [text.feed(piece) for piece in pieces] + [text.finish()]
    written, thought, shown = ("".join(parts) for parts in zip(*deltas, strict=True))
    assert thought == text.thought
    return written, thought, shown, text.answer, text.matched


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (": <t>a b</t>\n\nyes", ("<t>a b</t>\n\nyes", "a b", "YES", "yes", None)),
        (": <t>a b</t>\n\nyes ", ("<t>a b</t>\n\nyes", "a b", "YES", "yes", " ")),
        (": <t>\n\na</t>\n\n42\n", ("<t>\n\na</t>\n\n42", "a", "42", "42", "\n")),
        (": no", ("no", "", "NO", "no", None)),
        (": <", ("<", "", "<", "<", None)),
    ],
)
def test_every_part_finds_its_place(text: str, result: tuple[str, str, str, str, str | None]) -> None:
    assert read([text]) == result


@given(
    st.sampled_from([": <t>a b</t>\n\nyes ", ": <t>x</t>\n\n", ": <t>never", ": free\n", "  <t></t>\n\n\n"]),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_no_part_depends_on_the_pieces(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    assert read([text[a:b] for a, b in itertools.pairwise(places)]) == read([text])
