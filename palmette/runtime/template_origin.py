"""Which characters of a rendered template came from a user: the data given to it, and the reading of what it wrote.

    Given("a</s>")  --marked-->  "!a!<!/!s!>."  --template-->  "<u>!a!<!/!s!>.</u>"  --told apart-->  <u>, a</s>, </u>

In a user's text one mark stands before each word and each other character, and another behind the last; both occur
nowhere else. A template may move such a text, drop it, or write it as JSON. Where it cut one, a mark is left that
belongs to no such text, and nothing is told apart. What stands without a mark is a word at most. So no text of a user's
can pass for a special token of the model's, none of which is a word.

Knows neither roles nor tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from palmette.errors import TemplateError
from palmette.types import TextPiece


class Given(str):
    """A text that came from outside: what it holds never becomes a special token. Others are our own."""

    __slots__ = ()


class Joined(tuple[str, ...]):
    """A text made of several, each `Given` or not."""

    __slots__ = ()


class Arguments(dict[str, Any]):
    """A call's arguments as templates want them: most as a mapping, some as its JSON text."""

    def __init__(self, members: Mapping[str, Any], text: str) -> None:
        super().__init__(members)
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: str) -> str:
        return self.text + other

    def __radd__(self, other: str) -> str:
        return other + self.text


Write: TypeAlias = Callable[[str], str]


def resolved(value: Any, write: Write) -> Any:
    """`value`, data as JSON has it, with plain texts in it: each `Given` as `write` makes it."""
    if isinstance(value, Given):
        return write(str(value))
    if isinstance(value, Joined):
        return "".join(resolved(part, write) for part in value)
    if isinstance(value, Arguments):
        return Arguments(
            {resolved(k, write): resolved(v, write) for k, v in value.items()}, resolved(value.text, write)
        )
    if isinstance(value, Mapping):
        return {resolved(key, write): resolved(item, write) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(item, write) for item in value]
    return value


def as_given(value: str) -> str:
    return value


def given_texts(value: Any) -> list[str]:
    """All that came from outside."""
    found: list[str] = []

    def write(text: str) -> str:
        found.append(text)
        return text

    resolved(value, write)
    return found


def unused_characters(count: int, texts: Sequence[str]) -> str:
    """`count` characters for private use that stand in none of `texts`.

    Raises:
        TemplateError: there are not so many.
    """
    used = set[str]().union(*map(set, texts))
    free = []
    for code in (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)):
        if chr(code) not in used:
            free.append(chr(code))
            if len(free) == count:
                return "".join(free)
    raise TemplateError("the messages use all characters for private use, and some must be left: send fewer of them")


_WORD = "[A-Za-z0-9 ,.:;!?'()=+*-]+"  # in JSON as they are, and no special token is made of these alone
_UNIT = re.compile(f"{_WORD}|.", re.S)
_SLICE = 1 << 16  # characters


class Marks(NamedTuple):
    each: str  # before each word and each other character of a user's
    end: str  # behind the last one

    def removed(self, text: str) -> str:
        return text.replace(self.each, "").replace(self.end, "")


def marked(text: str, marks: Marks) -> str:
    """In slices, so that no single step holds up other threads for long."""
    slices = (text[i : i + _SLICE] for i in range(0, len(text), _SLICE))
    return "".join(_UNIT.sub(rf"{marks.each}\g<0>", part) for part in slices) + marks.end if text else ""


def marked_inside(text: str, marks: Marks, whole: re.Pattern[str] | None = None) -> str:
    """The same, but for what templates look at: white space at the edges, which they trim, and matches of `whole`."""
    if whole is not None:
        parts = whole.split(text)  # text, match, text, ...
        return "".join(p if i % 2 else marked_inside(p, marks) for i, p in enumerate(parts))
    core = text.strip()
    if not core:
        return text
    return text[: len(text) - len(text.lstrip())] + marked(core, marks) + text[len(text.rstrip()) :]


def pattern_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """One group that matches any of `texts`, the first one given where several do."""
    return re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None


def try_told_apart(
    text: str, marks: Marks, never_special: re.Pattern[str] | None = None
) -> tuple[TextPiece, ...] | None:
    """The pieces of a rendering, without the marks; None if a text of a user's did not stay in one piece.

    Args:
        never_special: one group; what it matches may be anybody's.
    """
    each, end = map(re.escape, marks)
    unit = rf'{each}(?:\\["\\/bfnrt]|\\u[0-9a-fA-F]{{4}}|{_WORD}|[^{each}{end}])'  # as it is, or as JSON writes it
    pieces: list[TextPiece] = []

    def add(part: str, *, special: bool) -> None:
        if pieces and part and pieces[-1].special == special:
            part = pieces.pop().text + part
        if part:
            pieces.append(TextPiece(part, special=special))

    for i, run in enumerate(re.split(f"((?:{unit})+{end})", text)):
        if i % 2:
            add(marks.removed(run), special=False)
            continue
        if marks.removed(run) != run:
            return None
        for j, part in enumerate([run] if never_special is None else never_special.split(run)):
            add(part, special=j % 2 == 0)
    return tuple(pieces)
