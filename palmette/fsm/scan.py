"""Finding a pattern in a text that is still being written: where its first match ends, and what may yet become one.

A match is found at the character that completes it; of several completing there, the one that begins first. Linear in
the text for any pattern: attempts that stand in one state are one attempt, so none is ever tried again.

Knows characters and automata; nothing of tokens.
"""

from __future__ import annotations

from palmette.errors import InvalidOption
from palmette.fsm.budget import Budget
from palmette.fsm.dfa import DEAD, Subset, step
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.specs import Regex


class Pattern:
    """A pattern to be found. Its automaton fills itself as it is used: one thread at a time."""

    def __init__(self, pattern: str, limits: Limits | None = None) -> None:
        """
        Raises:
            UnsupportedConstraint: outside the dialect (docs/regex-dialect.md), or over a limit.
            InvalidOption: it matches the empty text, or asks for a text's start or end.
        """
        if _has_anchor(pattern):
            raise InvalidOption("stop_regex", pattern, "a pattern without ^ and $: it is looked for anywhere")
        self.pattern = pattern
        self.budget = Budget(limits or Limits())
        language, _ = to_language(Regex(pattern), limits)
        self.machine: Subset = Lowering(self.budget).automaton(language)
        if self.machine.accepts(self.machine.start):
            raise InvalidOption("stop_regex", pattern, "a pattern that does not match the empty text")

    def scanner(self) -> Scanner:
        return Scanner(self)


class Scanner:
    """One text's search for one pattern."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._attempts: dict[int, int] = {}  # state -> where its first attempt began
        self._length = 0  # characters read

    @property
    def open_from(self) -> int:
        """Characters before this one are part of no match to come."""
        return min(self._attempts.values(), default=self._length)

    def push(self, char: str) -> int | None:
        """Read a character. Returns where the match that it completes begins."""
        machine = self.pattern.machine
        self.pattern.budget.begin_step()
        self._attempts.setdefault(machine.start, self._length)
        self._length += 1
        moved: dict[int, int] = {}
        found: int | None = None
        for state, start in self._attempts.items():
            for byte in char.encode("utf-8", "surrogatepass"):
                state = step(machine, state, byte)
                if state == DEAD:
                    break
            if state == DEAD:
                continue
            moved[state] = min(start, moved.get(state, start))
            if machine.accepts(state) and (found is None or start < found):
                found = start
        self._attempts = moved
        return found


def _has_anchor(text: str) -> bool:
    escaped = in_class = False
    for char in text:
        if escaped:
            escaped = False
            if char in "AZz" and not in_class:
                return True
        elif char == "\\":
            escaped = True
        elif char == "[":
            in_class = True
        elif char == "]":
            in_class = False
        elif char in "^$" and not in_class:
            return True
    return False
