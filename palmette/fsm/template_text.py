"""Template text: characters, and the special tokens of a vocabulary that it names.

A special token stands for bytes that are in no text (`vocabulary.special_bytes`), so an automaton can ask for it and no
other constraint ever allows it. Without a vocabulary every template text is plain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import And, Explicit, Literal, Node, seq
from palmette.fsm.dfa import DEAD, Segments

Specials: TypeAlias = Mapping[str, bytes | None]  # bytes by text; None = a token that ends the sequence


class Token(NamedTuple):
    """A special token."""

    text: str  # as templates write it
    data: bytes  # what stands for it in an automaton


Part: TypeAlias = str | Token


def template_parts(text: str, special: Specials, place: str) -> tuple[Part, ...]:
    """`text` cut at its special tokens, the longest first where several begin. Plain parts are not empty.

    Raises:
        UnsupportedConstraint: it names a token that ends the sequence, or holds a lone surrogate.
    """
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise UnsupportedConstraint(place, "lone surrogate", "it is not a character")
    named = sorted((t for t in special if t and t in text), key=len, reverse=True)
    if not named:
        return (text,) if text else ()
    parts: list[Part] = []
    for n, part in enumerate(re.split("(" + "|".join(map(re.escape, named)) + ")", text)):
        if n % 2 == 0:
            if part:
                parts.append(part)
            continue
        token = special[part]
        if token is None:
            reason = f"{part!r} ends the sequence, so nothing may ask for it"
            raise UnsupportedConstraint(place, "special token", reason, "leave it out: the end may follow anyway")
        parts.append(Token(part, token))
    return tuple(parts)


def parts_node(parts: tuple[Part, ...]) -> Node:
    """Exactly these parts."""
    return seq(*(Literal(p) if isinstance(p, str) else And((Explicit(_Word(p.data)),)) for p in parts))


class _Word:
    """The automaton of one byte string: state n has read n - 1 bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.start = DEAD + 1

    def accepts(self, state: int) -> bool:
        return state == len(self._data) + 1

    def segments(self, state: int) -> Segments:
        if state == DEAD or state > len(self._data):
            return ()
        byte = self._data[state - 1]
        return ((byte, byte, state + 1),)
