"""Token masks of automaton states: computed once per state, shared where equal, dropped when they take too much room.

    mask: uint32 words, bit `id % 32` of word `id // 32` = token `id` is allowed

Masks are computed on a copy of the automaton whose counts saturate above the longest token (`nfa`), so that the many
states of a large count share one. Knows states and tokens; forcing and budgets are the matcher's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Subset
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.slices import Absorber, Mask, pack
from palmette.fsm.table import Table
from palmette.fsm.trie import Trie
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import narrow_walk, walk


class Masks:
    """The masks of `machine` over `vocabulary`."""

    def __init__(self, vocabulary: Vocabulary, machine: Subset, budget: Budget) -> None:
        self.vocabulary = vocabulary
        self.machine = machine
        self.budget = budget
        nfa = Nfa(machine.nfa.program, budget, saturate=vocabulary.max_token_len)
        nfa.dead_items = machine.nfa.dead_items
        self._saturated = Subset(nfa, DONE, budget)
        self._table = Table(self._saturated)
        self._absorbers = [Absorber(part, self._saturated) for part in vocabulary.slices]
        self._masks: dict[int, Mask] = {}  # by state of `machine`
        self._by_saturated: dict[int, Mask] = {}
        self._distinct: dict[bytes, Mask] = {}

    @property
    def num_distinct(self) -> int:
        return len(self._distinct)

    @property
    def num_nfa_states(self) -> int:
        return len(self._saturated.nfa.items)

    @property
    def nbytes(self) -> int:
        return sum(m.nbytes for m in self._distinct.values()) + self._table.nbytes

    def mask(self, state: int) -> Mask:
        """Tokens allowed in `state`, end-of-sequence included where the state accepts. Read-only; the cache's own."""
        found = self._masks.get(state)
        if found is None:
            found = self._masks[state] = self._new_mask(state)
        return found

    def _new_mask(self, state: int) -> Mask:
        nfa = self._saturated.nfa
        saturated = self._saturated.state_of([nfa.translated(self.machine.nfa, m) for m in self.machine.members[state]])
        found = self._by_saturated.get(saturated)
        if found is None:
            if len(self._distinct) * self.vocabulary.mask_words * 4 > self.budget.limits.mask_cache_bytes:
                self._masks.clear()
                self._by_saturated.clear()
                self._distinct.clear()
            computed = self._compute(saturated)
            computed.setflags(write=False)
            found = self._distinct.setdefault(computed.tobytes(), computed)
            self._by_saturated[saturated] = found
        return found

    def _compute(self, state: int) -> Mask:
        vocabulary = self.vocabulary
        bits = np.zeros(vocabulary.mask_words * 32, bool)
        if self._saturated.accepts(state):
            bits[list(vocabulary.eos_ids)] = True
        few = narrow_walk(self._table, vocabulary.children, state)
        if few is not None:
            for node, _ in few:
                bits[vocabulary.ids_at(node)] = True
            return pack(bits)
        for absorber in self._absorbers:
            room = absorber.room(state)
            if room:
                self._mark(bits, absorber.part.others, state)
                words = pack(bits)
                words |= absorber.part.up_to[min(room, absorber.part.max_chars)]
                return words
        self._mark(bits, vocabulary.trie, state)
        return pack(bits)

    def _mark(self, bits: npt.NDArray[np.bool_], trie: Trie, state: int) -> None:
        nodes, _ = walk(self._table, trie, state)
        alive = np.zeros(trie.num_nodes, bool)
        alive[nodes] = True
        bits[trie.token_ids[alive[trie.token_nodes]]] = True
