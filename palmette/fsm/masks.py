"""Token masks of automaton states: computed once per state, shared where equal, dropped when they take too much room.

    mask: uint32 words, bit `id % 32` of word `id // 32` = token `id` is allowed

Where the automaton counts further than the longest token is long, masks are computed on a copy of it whose counts
saturate there (`nfa`), so that the many states of a large count share one. Knows states and tokens; forcing and
budgets are the matcher's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Subset
from palmette.fsm.nfa import DONE, Nfa
from palmette.fsm.slices import Absorber, Mask, pack
from palmette.fsm.table import Table
from palmette.fsm.trie import NO_TOKEN, IndexArray, Trie
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import narrow_walk, walk


class Masks:
    """The masks of `machine` over `vocabulary`."""

    def __init__(self, vocabulary: Vocabulary, machine: Subset, budget: Budget) -> None:
        self.vocabulary = vocabulary
        self.machine = machine
        self.budget = budget
        self._saturated = machine
        if machine.nfa.program.largest_count > vocabulary.max_token_len:
            nfa = Nfa(machine.nfa.program, budget, saturate=vocabulary.max_token_len)
            nfa.dead_items = machine.nfa.dead_items
            self._saturated = Subset(nfa, DONE, budget)
        self.table = Table(self._saturated)
        self._absorbers = [Absorber(part, self._saturated) for part in vocabulary.slices]
        self._masks: dict[int, Mask] = {}  # by state of `machine`
        self._by_saturated: dict[int, Mask] = {}
        self._distinct: dict[bytes, Mask] = {}
        self._prefetched: set[int] = set()  # states whose successors' masks were computed

    @property
    def num_distinct(self) -> int:
        return len(self._distinct)

    @property
    def num_masked_states(self) -> int:
        return len(self._by_saturated)

    @property
    def nfa(self) -> Nfa:
        """Of the automaton that masks are computed on."""
        return self._saturated.nfa

    @property
    def nbytes(self) -> int:
        return len(self._distinct) * self.vocabulary.mask_words * 4 + self.table.nbytes

    def mask(self, state: int) -> Mask:
        """Tokens allowed in `state`, end-of-sequence included where the state accepts. Read-only; the cache's own."""
        found = self._masks.get(state)
        if found is None:
            found = self._masks[state] = self._new_mask(state)
        return found

    def prefetch(self, state: int, limit: int) -> int:
        """Compute masks that one more token may ask for, those that most tokens lead to first; returns how many."""
        origin = self.saturated(state)
        if origin in self._prefetched:
            return 0
        self._prefetched.add(origin)
        trie = self.vocabulary.trie
        nodes, reached = walk(self.table, trie, origin)
        tokens_to = np.bincount(reached[trie.first_ids[nodes] != NO_TOKEN])
        made = 0
        for likely in np.argsort(-tokens_to, kind="stable")[:limit].tolist():
            if tokens_to[likely] and likely not in self._by_saturated:
                self._mask_of_saturated(likely)
                made += 1
        return made

    def _new_mask(self, state: int) -> Mask:
        saturated = self.saturated(state)
        found = self._by_saturated.get(saturated)
        return self._mask_of_saturated(saturated) if found is None else found

    def _mask_of_saturated(self, state: int) -> Mask:
        if len(self._distinct) * self.vocabulary.mask_words * 4 > self.budget.limits.mask_cache_bytes:
            self._masks.clear()
            self._by_saturated.clear()
            self._distinct.clear()
            self._prefetched.clear()
        computed = self._compute(state)
        computed.setflags(write=False)
        found = self._by_saturated[state] = self._distinct.setdefault(computed.tobytes(), computed)
        return found

    def saturated(self, state: int) -> int:
        """The state of `table`'s machine that stands for `state`."""
        if self._saturated is self.machine:
            return state
        nfa = self._saturated.nfa
        return self._saturated.state_of([nfa.translated(self.machine.nfa, m) for m in self.machine.members[state]])

    def _compute(self, state: int) -> Mask:
        vocabulary = self.vocabulary
        flags = np.zeros(vocabulary.mask_words * 32 + 32, bool)  # the last is for NO_TOKEN
        if self._saturated.accepts(state):
            flags[list(vocabulary.eos_ids)] = True
        few = narrow_walk(self.table, vocabulary.children, state)
        if few is not None:
            self._mark(flags, vocabulary.trie, few)
            return pack(flags[:-32])
        letters = any(low <= 0x61 and high >= 0x7A for low, high, _ in self._saturated.segments(state))
        for absorber in self._absorbers if letters else ():  # a to z are in every slice
            room = absorber.room(state)
            if room:
                part = absorber.part
                self._mark(flags, part.others, walk(self.table, part.others, state)[0])
                words = pack(flags[:-32])
                words |= part.up_to[min(room, part.max_chars)]
                return words
        self._mark(flags, vocabulary.trie, walk(self.table, vocabulary.trie, state)[0])
        return pack(flags[:-32])

    @staticmethod
    def _mark(flags: npt.NDArray[np.bool_], trie: Trie, nodes: IndexArray | list[int]) -> None:
        flags[trie.first_ids[nodes]] = True
        if trie.shared:
            for node in trie.shared.keys() & (nodes if isinstance(nodes, list) else nodes.tolist()):
                flags[trie.shared[node]] = True
