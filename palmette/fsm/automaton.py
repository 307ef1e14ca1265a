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
from palmette.fsm.dfa import DEAD, Subset, step
from palmette.fsm.limits import Limits
from palmette.fsm.lower import Lowering
from palmette.fsm.masks import Masks
from palmette.fsm.shortest import Shortest
from palmette.fsm.slices import Mask
from palmette.fsm.table import Table
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import walk

MAX_FORCED = 4096  # bytes that forced_bytes returns at most

_REBUILD_AT = 0.8  # of the limit on states
_REMEMBERED_STEPS = 1 << 20


class Automaton:
    """The automaton of `language` over `vocabulary`."""

    def __init__(
        self, language: Language, vocabulary: Vocabulary, limits: Limits, clock: Callable[[], float] | None = None
    ) -> None:
        self.language = language
        self.vocabulary = vocabulary
        self.limits = limits
        self.epoch = 0
        self._build(clock)

    def _build(self, clock: Callable[[], float] | None) -> None:
        self.budget = Budget(self.limits, clock)
        lowering = Lowering(self.budget, self.vocabulary.single_bytes)
        self.machine: Subset = lowering.automaton(self.language)
        self.masks = Masks(self.vocabulary, self.machine, self.budget)
        self._shortest: Shortest | None = None
        self._steps: dict[int, int] = {}
        self._costs: dict[int, int] = {}
        self._table = Table(self.machine)  # of exact states: masks have a table of their own
        self._token_costs: dict[int, tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]] = {}
        self._forced: dict[int, tuple[bytes, int]] = {}

    @property
    def start(self) -> int:
        return self.machine.start

    def begin_step(self) -> None:
        """A new step of one matcher: its share of new states starts, and an automaton grown too large is rebuilt."""
        nfa_states = max(len(self.machine.nfa.items), self.masks.num_nfa_states)
        if (
            self.budget.states > _REBUILD_AT * self.limits.dfa_states
            or nfa_states > _REBUILD_AT * self.limits.nfa_states
        ):
            self.epoch += 1
            self._build(None)
        self.budget.begin_step()

    def mask(self, state: int) -> Mask:
        return self.masks.mask(state)

    def accepts(self, state: int) -> bool:
        return self.machine.accepts(state)

    def read(self, state: int, data: bytes) -> int:
        """The state behind `data`, or DEAD."""
        for byte in data:
            state = step(self.machine, state, byte)
            if state == DEAD:
                return DEAD
        return state

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
            data = bytearray()
            at = state
            while len(data) < MAX_FORCED and not self.machine.accepts(at):
                segments = self.machine.segments(at)
                if len(segments) != 1 or segments[0][0] != segments[0][1]:
                    break
                data.append(segments[0][0])
                at = segments[0][2]
            found = self._forced[state] = bytes(data), at
        return found

    def cost_to_accept(self, state: int) -> int:
        """An upper bound on the tokens that lead from `state` to a finished sequence, end-of-sequence included."""
        found = self._costs.get(state)
        if found is None:
            if self._shortest is None:
                self._shortest = Shortest(self.machine.nfa)
            word = self._shortest.of_dfa_state(self.machine, state)
            found = self._costs[state] = len(self.vocabulary.greedy(word)) + 1
        return found

    def token_costs(self, state: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
        """Tokens that keep `state` alive, end-of-sequence aside, and cost_to_accept behind each of them."""
        found = self._token_costs.get(state)
        if found is None:
            trie = self.vocabulary.trie
            nodes, reached = walk(self._table, trie, state)
            at = np.full(trie.num_nodes, DEAD, np.int32)
            at[nodes] = reached
            ends = at[trie.token_nodes]
            alive = ends != DEAD
            states, which = np.unique(ends[alive], return_inverse=True)
            costs = np.array([self.cost_to_accept(s) for s in states.tolist()], np.int32)
            found = self._token_costs[state] = trie.token_ids[alive], costs[which]
        return found
