"""Everything that grows while one constraint is in use: the automaton, its masks, and what was learnt of its states.

Matchers hold states of an automaton and its `epoch`. When it has grown too large it is rebuilt from the language and
the epoch changes; a matcher then finds its place again from the bytes it has read. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from palmette.fsm.algebra import Language
from palmette.fsm.budget import Budget
from palmette.fsm.costs import Costs
from palmette.fsm.dfa import DEAD
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.fsm.slices import Mask
from palmette.fsm.unfolding import Unfolding, unfold
from palmette.fsm.vocabulary import Vocabulary

NO_WAY = 1 << 30  # a cost above every budget
MAX_FORCED = 4096  # bytes that forced_bytes returns at most

_REBUILD_AT = 0.8  # of the limit on states
_REMEMBERED_STEPS = 1 << 17
_REMEMBERED_COSTS = 16  # states, the first computed goes first: only the last tokens of a budget need them


class Automaton:
    """The automaton of `language` over `vocabulary`."""

    def __init__(
        self,
        language: Language,
        vocabulary: Vocabulary,
        limits: Limits,
        clock: Callable[[], float] | None = None,
        started: float | None = None,
    ) -> None:
        """`clock` and `started` (`Budget`) bound the time that building takes."""
        self.language = language
        self.vocabulary = vocabulary
        self.limits = limits
        self.epoch = 0
        self._most_states = _REBUILD_AT * limits.dfa_states
        self._most_nfa_states = _REBUILD_AT * limits.nfa_states
        self._build(clock, started)

    def _build(self, clock: Callable[[], float] | None = None, started: float | None = None) -> None:
        self.budget = Budget(self.limits, clock, started)
        lowering = Lowering(self.budget, self.vocabulary.single_bytes)
        self.machine: Unfolding = unfold(lowering, lowering.language(self.language), self.vocabulary)
        self._item_costs: Costs | None = None
        self._steps: dict[int, int] = {}
        self._costs: dict[int, tuple[int, int]] = {}
        self._worst_costs: dict[int, int] = {}
        self._token_costs: dict[int, npt.NDArray[np.int32]] = {}
        self._forced: dict[int, tuple[bytes, int]] = {}

    @property
    def start(self) -> int:
        return self.machine.start

    @property
    def nbytes(self) -> int:
        """About what its masks, tables and states take."""
        return self.machine.nbytes

    def begin_step(self) -> None:
        """A new step of one matcher: its share of new states starts, and an automaton grown too large is rebuilt."""
        if self.machine.outgrown(self._most_states, self._most_nfa_states):
            self.epoch += 1
            self._build()
        self.budget.begin_step()

    def mask(self, state: int) -> Mask:
        return self.machine.mask(state)

    def accepts(self, state: int) -> bool:
        return self.machine.accepts(state)

    def read(self, state: int, data: bytes) -> int:
        """The state behind `data`, or DEAD."""
        return self.machine.read(state, data)

    def after_token(self, state: int, token: int) -> int:
        """The state behind a token that is not end-of-sequence, or DEAD."""
        key = state * len(self.vocabulary) + token
        found = self._steps.get(key)
        if found is None:
            data = self.vocabulary.tokens[token]
            found = self.read(state, data) if data and token not in self.vocabulary.eos_ids else DEAD
            if len(self._steps) >= _REMEMBERED_STEPS:
                self._steps.clear()
            self._steps[key] = found
        return found

    def forced(self, state: int) -> tuple[bytes, int]:
        """The bytes that every continuation of a not accepting `state` begins with, and the state behind them."""
        found = self._forced.get(state)
        if found is None:
            found = self._forced[state] = self.machine.forced(state, MAX_FORCED)
        return found

    def cost_to_accept(self, state: int) -> int:
        """An upper bound on the tokens that lead from `state` to a finished sequence, end-of-sequence included."""
        return (self._costs.get(state) or self._new_costs(state))[0]

    def peak(self, state: int) -> int:
        """An upper bound on cost_to_accept behind any one token from `state`."""
        return (self._costs.get(state) or self._new_costs(state))[1]

    def _new_costs(self, state: int) -> tuple[int, int]:
        if self._item_costs is None:
            self._item_costs = Costs(self.machine.nfa, self.vocabulary)
        cost, peak = self._item_costs.of_states(self.machine.members(state))
        found = self._costs[state] = cost + 1, peak + 1
        return found

    def worst_cost(self, state: int) -> int:
        """The most that cost_to_accept is behind any one token that is allowed in `state`; exactly."""
        found = self._worst_costs.get(state)
        if found is None:
            costs = self.token_costs(state)
            found = self._worst_costs[state] = int(costs.max(initial=0, where=costs < NO_WAY))
        return found

    def token_costs(self, state: int) -> npt.NDArray[np.int32]:
        """Per token id, cost_to_accept behind it; NO_WAY where it is not allowed, and for end-of-sequence.

        As long as a mask's bits: ids beyond the vocabulary have NO_WAY too. Read-only; the cache's own.
        """
        found = self._token_costs.get(state)
        if found is None:
            behind = self.machine.behind_tokens(state)
            costs = np.full(int(behind.max(initial=0)) + 1, NO_WAY, np.int32)
            for to in np.flatnonzero(np.bincount(behind)).tolist():
                if to != DEAD:
                    costs[to] = min(self.cost_to_accept(to), NO_WAY)
            found = costs[behind]
            if len(self._token_costs) >= _REMEMBERED_COSTS:
                self._token_costs.pop(next(iter(self._token_costs)))
            self._token_costs[state] = found
        return found
