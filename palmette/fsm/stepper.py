"""Automata given by a step function, for languages that are easier to compute than to write: numbers, mostly.

Knows ASCII only. States appear as they are reached; dead ends are the `Product`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from palmette.fsm.dfa import DEAD, Segments


class Stepper:
    """A Machine over `alphabet`. `step(state, char)` gives the next state, or None for a dead end."""

    def __init__(
        self,
        start: Hashable,
        step: Callable[[Hashable, str], Hashable | None],
        accepts: Callable[[Hashable], bool],
        alphabet: str,
    ) -> None:
        self._step = step
        self._accepts = accepts
        self._alphabet = sorted(alphabet)
        self._values: list[Hashable] = [None]
        self._ids: dict[Hashable, int] = {}
        self._rows: dict[int, Segments] = {DEAD: ()}
        self.start = self._id(start)

    def accepts(self, state: int) -> bool:
        return state != DEAD and self._accepts(self._values[state])

    def segments(self, state: int) -> Segments:
        row = self._rows.get(state)
        if row is None:
            found: list[tuple[int, int, int]] = []
            for char in self._alphabet:
                to = self._step(self._values[state], char)
                if to is None:
                    continue
                byte, target = ord(char), self._id(to)
                if found and found[-1][1] == byte - 1 and found[-1][2] == target:
                    found[-1] = (found[-1][0], byte, target)
                else:
                    found.append((byte, byte, target))
            row = self._rows[state] = tuple(found)
        return row

    def _id(self, value: Hashable) -> int:
        found = self._ids.get(value)
        if found is None:
            found = self._ids[value] = len(self._values)
            self._values.append(value)
        return found
