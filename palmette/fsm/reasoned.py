"""A cursor whose first part, the reasoning, may take a bounded number of tokens (a thinking budget).

    whole:      begin reasoning end content        what the text must be
    reasoning:  begin reasoning end anything       how far it is from the end of the reasoning

Two automata read the same tokens. While the second has not come to its end, a token must also leave enough of the
thinking budget for the shortest way there, so the end is reached in time without rewriting anything. Both count their
costs item by item (`costs`), and the items up to `end` are the same: the first token of the cheapest end of the whole
is one of the cheapest end of the reasoning, so the two demands never leave an empty mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from palmette.fsm.budgeted import budgeted_mask
from palmette.fsm.cursor import Encode
from palmette.fsm.dfa import DEAD
from palmette.fsm.matcher import Matcher
from palmette.fsm.slices import Mask

if TYPE_CHECKING:
    from palmette.fsm.compile import Constraint


class ReasonedMatcher(Matcher):
    """A matcher of the whole, with one of the reasoning beside it that stops reading when the reasoning has ended."""

    def __init__(self, constraint: Constraint, reasoning: Constraint, budget: int) -> None:
        """`budget`: tokens that the reasoning may take besides the fewest that spell its marks."""
        super().__init__(constraint)
        self._reasoning = Matcher(reasoning)
        self._most = self._reasoning.cost_to_accept() - 1 + budget  # tokens up to the end of the reasoning

    @property
    def is_reasoning(self) -> bool:
        """Whether the end of the reasoning is still to come."""
        return not self._reasoning.is_accepting

    def mask(self) -> Mask:
        return self._within_reasoning(None)

    def fill_mask(self, out: Mask, *, budget: int | None = None) -> None:
        np.copyto(out, self._within_reasoning(None if self.is_terminated else budget))

    def try_advance(self, token: int) -> bool:
        reasoning = self.is_reasoning
        if (reasoning and not self._fits(token)) or not super().try_advance(token):
            return False
        if reasoning:
            self._reasoning.advance(token)
        return True

    def advance_bytes(self, data: bytes) -> bool:
        """As in Matcher; bytes count no token of the thinking budget."""
        reasoning = self.is_reasoning
        if not super().advance_bytes(data):
            return False
        if reasoning:
            self._reasoning.advance_bytes(data)
        return True

    def rollback(self, readings: int) -> None:
        super().rollback(readings)
        self._reasoning.rollback(max(0, len(self._reasoning._read) - len(self._read)))

    def fork(self) -> ReasonedMatcher:
        other = ReasonedMatcher.__new__(ReasonedMatcher)
        vars(other).update(vars(super().fork()))
        other._reasoning, other._most = self._reasoning.fork(), self._most
        return other

    def forced_tokens(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]:
        """As in Matcher, up to the last that the thinking budget leaves room for."""
        tokens = super().forced_tokens(encode, tail)
        automaton, state, left = self._reasoning.constraint.automaton, self._reasoning._state(), self._left()
        for n, token in enumerate(tokens):
            if automaton.accepts(state):
                break
            state = automaton.after_token(state, token)
            if state == DEAD or automaton.cost_to_accept(state) > left - n:
                return tokens[:n]
        return tokens

    def _left(self) -> int:
        """Tokens up to the end of the reasoning that may still come. Never fewer than it takes: bytes may be read."""
        return max(self._most - len(self._reasoning.tokens), self._reasoning.cost_to_accept() - 1)

    def _fits(self, token: int) -> bool:
        """Whether the reasoning can still end in time behind `token`."""
        automaton = self._reasoning.constraint.automaton
        to = automaton.after_token(self._reasoning._state(), token)
        return to != DEAD and automaton.cost_to_accept(to) <= self._left()

    def _within_reasoning(self, budget: int | None) -> Mask:
        reasoning = self.is_reasoning
        plan = self.forced_plan
        if reasoning and plan and not self._fits(plan[0]):
            self._plans[-1] = ()  # the thinking budget is the stronger promise
        words = super().mask() if budget is None else self._budgeted(budget)
        if not reasoning or self.forced_plan:
            return words
        automaton, state, left = self._reasoning.constraint.automaton, self._reasoning._state(), self._left()
        if automaton.peak(state) <= left:
            return words
        return words & budgeted_mask(automaton, state, left + 1)
