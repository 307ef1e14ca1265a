"""One request's place in a constraint: which tokens may come next, and what has come so far.

Knows one automaton and the tokens read. Forcing is part of its meaning: where `plan_forced` found tokens, the mask
holds exactly the next of them until they are read, whether or not the engine jumps over them in one extend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from palmette.errors import RequestError, UnsupportedConstraint
from palmette.fsm.budgeted import budgeted_mask
from palmette.fsm.cursor import Encode
from palmette.fsm.dfa import DEAD
from palmette.fsm.retokenize import paper_jump
from palmette.fsm.slices import Mask
from palmette.fsm.stable import stable_prefix

if TYPE_CHECKING:
    from palmette.fsm.compile import Constraint


class Matcher:
    """A cursor. Cheap to fork; states are shared with every matcher of the constraint. Not thread-safe."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self._automaton = constraint.automaton
        self._epoch = self._automaton.epoch
        self._states = [self._automaton.start]  # one per reading, the first before any
        self._read: list[bytes] = []  # what led from each state to the next
        self._tokens: list[int] = []  # the token of each reading, -1 for bytes
        self._plans: list[tuple[int, ...]] = [()]  # forced tokens still to come, parallel to _states
        self._ended_at: int | None = None  # number of readings when end-of-sequence came

    # -- where it stands -------------------------------------------------------------------------------------------

    @property
    def is_accepting(self) -> bool:
        """Whether what was read satisfies the constraint as it is."""
        return self._automaton.accepts(self._state())

    @property
    def is_terminated(self) -> bool:
        """Whether end-of-sequence was read. Nothing may follow it."""
        return self._ended_at is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens read so far; readings of bytes are not among them."""
        return tuple(t for t in self._tokens if t >= 0)

    @property
    def forced_plan(self) -> tuple[int, ...]:
        """Forced tokens that were planned and not read yet."""
        return self._plans[-1]

    def mask(self) -> Mask:
        """Tokens allowed next, as packed bits (`masks`). Read-only, and valid for as long as it is held."""
        self._automaton.begin_step()
        plan = self._plans[-1]
        if plan:
            return _single(plan[0], self.constraint.vocabulary.mask_words)
        if self._ended_at is not None:
            return np.zeros(self.constraint.vocabulary.mask_words, np.uint32)
        return self._automaton.mask(self._state())

    def fill_mask(self, out: Mask, *, budget: int | None = None) -> None:
        """Write the mask into `out` (mask_words uint32). With `budget` tokens left, only what still can come to an end.

        Raises:
            RequestError: no accepting path fits into `budget`.
            UnsupportedConstraint: the step needs more states than the limits allow.
        """
        if budget is not None and not self.is_terminated:
            np.copyto(out, self._budgeted(budget))
        else:
            np.copyto(out, self.mask())

    def allowed(self, *, budget: int | None = None) -> npt.NDArray[np.intp]:
        """Ids of the tokens allowed next, ascending."""
        words = np.zeros(self.constraint.vocabulary.mask_words, np.uint32)
        self.fill_mask(words, budget=budget)
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))

    def is_allowed(self, token: int) -> bool:
        word = int(self.mask()[token // 32])
        return bool(word >> (token % 32) & 1)

    # -- moving ----------------------------------------------------------------------------------------------------

    def advance(self, token: int) -> None:
        """Read one token.

        Raises:
            RequestError: the token is not allowed here; the matcher stays where it was.
        """
        if not self.try_advance(token):
            raise RequestError(f"token {token} is not allowed here: sample under the mask of this very step")

    def try_advance(self, token: int) -> bool:
        """Read one token if it is allowed; says whether it was."""
        self._automaton.begin_step()
        state, plan = self._state(), self._plans[-1]
        if self._ended_at is not None or (plan and plan[0] != token):
            return False
        if token in self.constraint.vocabulary.eos_ids:
            if not self._automaton.accepts(state):
                return False
            self._ended_at = len(self._read)
            self._push(state, b"", (), token)
            return True
        to = self._automaton.after_token(state, token)
        if to == DEAD:
            return False
        self._push(to, self.constraint.vocabulary.tokens[token], plan[1:], token)
        return True

    def advance_bytes(self, data: bytes) -> bool:
        """Read bytes as one reading (healing, replays); says whether they were allowed, and stays put if not."""
        self._automaton.begin_step()
        to = self._automaton.read(self._state(), data) if self._ended_at is None else DEAD
        if to == DEAD:
            return False
        self._push(to, data, (), -1)
        return True

    def rollback(self, readings: int) -> None:
        """Take back the last `readings` tokens (each advance_bytes counts as one)."""
        if not 0 <= readings <= len(self._read):
            raise RequestError(f"cannot roll back {readings} of {len(self._read)} readings")
        if readings:
            del self._states[-readings:], self._read[-readings:], self._plans[-readings:], self._tokens[-readings:]
            if self._ended_at is not None and self._ended_at >= len(self._read):
                self._ended_at = None

    def fork(self) -> Matcher:
        """An independent matcher at the same place."""
        other = Matcher.__new__(Matcher)
        other.constraint, other._automaton, other._epoch = self.constraint, self._automaton, self._epoch
        other._states, other._read, other._plans = self._states[:], self._read[:], self._plans[:]
        other._tokens = self._tokens[:]
        other._ended_at = self._ended_at
        return other

    # -- looking ahead ---------------------------------------------------------------------------------------------

    def forced_bytes(self) -> bytes:
        """Bytes that every continuation begins with; empty where the text may end here."""
        self._automaton.begin_step()
        return b"" if self._ended_at is not None else self._automaton.forced(self._state())[0]

    def forced_tokens(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]:
        """Tokens that any continuation, tokenized as a whole, begins with (`stable`), behind the emitted `tail`.

        `tail` are the last tokens before this place whose bytes may still merge with what follows: at least those back
        to a place where the pre-tokenizer always splits. Exact for BPE; the caller knows whether it has BPE.
        """
        self._automaton.begin_step()
        if self._ended_at is not None:
            return []
        if self._plans[-1]:
            return list(self._plans[-1])
        return stable_prefix(self._automaton, self._state(), encode, tail)

    def plan_forced(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]:
        """Make the forced tokens binding: from now on the mask holds each of them in turn. Returns them."""
        tokens = self.forced_tokens(encode, tail)
        self._plans[-1] = tuple(tokens)
        return tokens

    def paper_jump(self, encode: Encode, emitted: Sequence[int]) -> tuple[int, list[int]]:
        """`retokenize.paper_jump` from here; `emitted` are all tokens read so far."""
        self._automaton.begin_step()
        return paper_jump(self._automaton, self._state(), encode, emitted)

    def cost_to_accept(self) -> int:
        """An upper bound on the tokens to a finished sequence, end-of-sequence included; 0 once terminated."""
        self._automaton.begin_step()
        return 0 if self._ended_at is not None else self._automaton.cost_to_accept(self._state())

    def prefetch(self, limit: int = 8) -> int:
        """Compute up to `limit` masks that the next token may lead to, while nobody waits; returns how many were new.

        Takes up to some milliseconds, changes no answer and raises nothing for a crossed limit: a later step will.
        """
        if self._ended_at is not None or len(self._plans[-1]) > 1:
            return 0
        self._automaton.begin_step()
        try:
            return self._automaton.machine.prefetch(self._state(), limit)
        except UnsupportedConstraint:
            return 0

    def _budgeted(self, budget: int) -> Mask:
        self._automaton.begin_step()
        state, plan = self._state(), self._plans[-1]
        if plan:
            to = self._automaton.after_token(state, plan[0])
            if self._automaton.cost_to_accept(to) <= budget - 1:
                return self.mask()
            self._plans[-1] = ()  # the plan does not fit any more: the budget is the stronger promise
        return budgeted_mask(self._automaton, state, budget)

    def _state(self) -> int:
        if self._epoch != self._automaton.epoch:  # rebuilt since: find the states again from the bytes
            state = self._automaton.start
            self._states = [state]
            for data in self._read:
                self._automaton.budget.begin_step()  # each reading had a step of its own
                state = self._automaton.read(state, data)
                self._states.append(state)
            self._epoch = self._automaton.epoch
        return self._states[-1]

    def _push(self, state: int, data: bytes, plan: tuple[int, ...], token: int) -> None:
        self._states.append(state)
        self._tokens.append(token)
        self._read.append(data)
        self._plans.append(plan)


def _single(token: int, words: int) -> Mask:
    mask = np.zeros(words, np.uint32)
    mask[token // 32] = np.uint32(1 << (token % 32))
    return mask
