"""Reading JSON while it is written: what is closed so far, as plain Python data.

A string is there when its closing quote came, a number when something followed it, a member when its value is there,
and a container that is still open with the parts of it that are closed. The reader is fed text that a constraint
holds to JSON; it does not check it again. Time is linear in the text, and depth costs a list entry, not recursion.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_NOTHING = object()
_MAX_DIGITS = 4000
_PLAIN = re.compile(r'[^"\\]*')  # the inside of a string up to its end or an escape
_SCALAR = re.compile(r"[^\s,\]}]*")  # a number or a word up to what follows it


@dataclass(slots=True)
class _Open:
    """A container that is not closed, with the parts that are. `key` is that of the member being written."""

    value: dict[str, Any] | list[Any]
    key: str | None = None
    wants_key: bool = False


class PartialJson:
    """Feed it text as it comes; `snapshot()` is what is closed."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._top: Any = _NOTHING
        self._token: list[str] = []  # pieces of the string or scalar being read
        self._state = "value"  # value | string | escape | scalar: what the next character belongs to

    def feed(self, text: str) -> bool:
        """Read on; says whether something was closed."""
        closed = False
        position = 0
        while position < len(text):
            position, done = self._step(text, position)
            closed = closed or done
        return closed

    def finish(self) -> bool:
        """Nothing follows: a number at the top is closed by that."""
        if self._state != "scalar" or self._open:
            return False
        self._close_scalar()
        return True

    def snapshot(self) -> Any:
        """What is closed, as data of the caller's own; None if nothing is."""
        if self._top is not _NOTHING:
            return self._top
        inner: Any = _NOTHING
        for level in reversed(self._open):  # each open container with the one inside it, if that has something closed
            value: Any = level.value.copy()
            if inner is not _NOTHING:
                if isinstance(value, list):
                    value.append(inner)
                else:
                    value[level.key] = inner
            inner = value if value else _NOTHING
        return None if inner is _NOTHING else inner

    def _step(self, text: str, position: int) -> tuple[int, bool]:
        """Read one token, or as much of it as there is; returns where to go on, and whether a value was closed."""
        if self._state == "escape":
            self._token.append(text[position])
            self._state = "string"
            return position + 1, False
        if self._state == "string":
            return self._string(text, position)
        if self._state == "scalar":
            end = _SCALAR.match(text, position).end()  # type: ignore[union-attr]
            self._token.append(text[position:end])
            if end == len(text):
                return end, False
            return end, self._close_scalar()
        char = text[position]
        if char == '"':
            self._state, self._token = "string", []
        elif char == "{":
            self._open.append(_Open({}, wants_key=True))
        elif char == "[":
            self._open.append(_Open([]))
        elif char in "]}":
            return position + 1, self._add(self._open.pop().value)
        elif char == ",":
            self._open[-1].wants_key = isinstance(self._open[-1].value, dict)
        elif not char.isspace() and char != ":":
            self._state, self._token = "scalar", []
            return position, False
        return position + 1, False

    def _string(self, text: str, position: int) -> tuple[int, bool]:
        end = _PLAIN.match(text, position).end()  # type: ignore[union-attr]
        self._token.append(text[position:end])
        if end == len(text):
            return end, False
        if text[end] == "\\":
            self._token.append("\\")
            self._state = "escape"
            return end + 1, False
        self._state = "value"
        value = json.loads('"' + "".join(self._token) + '"', strict=False)
        level = self._open[-1] if self._open else None
        if level is not None and level.wants_key:
            level.key, level.wants_key = value, False
            return end + 1, False
        return end + 1, self._add(value)

    def _close_scalar(self) -> bool:
        self._state = "value"
        return self._add(json.loads("".join(self._token), parse_int=_integer))

    def _add(self, value: Any) -> bool:
        if not self._open:
            self._top = value
            return True
        level = self._open[-1]
        if isinstance(level.value, list):
            level.value.append(value)
        elif level.key is not None:
            level.value[level.key] = value
        return True


def _integer(digits: str) -> int | float:
    """Python reads no integers of more than a few thousand digits."""
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)
