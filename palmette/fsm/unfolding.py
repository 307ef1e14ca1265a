"""The automaton of a constraint as the rest of the package sees it: states, rows, and masks over one vocabulary.

This is the seam between Python and compiled code. `Unfolded` here is written with `nfa`, `dfa`, `walk` and `masks`: it
says what is meant, and works everywhere. `native.NativeUnfolding` gives the same answers, some twenty times faster,
where it was built. States are ints of one or the other: equal texts lead to equal states, equal numbers mean nothing.
Not thread-safe.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from palmette.fsm import native
from palmette.fsm.budget import Budget
from palmette.fsm.dfa import DEAD, Segments, Subset, step
from palmette.fsm.lower import Lowering
from palmette.fsm.masks import Masks
from palmette.fsm.nfa import Nfa
from palmette.fsm.slices import Mask
from palmette.fsm.table import Table
from palmette.fsm.vocabulary import Vocabulary
from palmette.fsm.walk import walk

_STATE_BYTES = 1024  # of one state with its transitions, roughly


class Unfolding(Protocol):
    """A `dfa.Machine` that appears as it is asked for. Every question may raise UnsupportedConstraint for a limit."""

    start: int
    nfa: Nfa  # the states that `members` names

    def accepts(self, state: int) -> bool: ...

    def segments(self, state: int) -> Segments: ...

    def read(self, state: int, data: bytes) -> int:
        """The state behind `data`, or DEAD."""
        ...

    def forced(self, state: int, most: int) -> tuple[bytes, int]:
        """Bytes, `most` at most, that every continuation begins with, up to where a text may end; the state behind."""
        ...

    def members(self, state: int) -> tuple[int, ...]:
        """The states of `nfa` that `state` stands for."""
        ...

    def mask(self, state: int) -> Mask:
        """Tokens allowed in `state`, end-of-sequence included where the state accepts. Read-only; the cache's own."""
        ...

    def prefetch(self, state: int, limit: int) -> int:
        """Compute masks that one more token may ask for, those that most tokens lead to first; returns how many."""
        ...

    def behind_tokens(self, state: int) -> npt.NDArray[np.int32]:
        """(mask_words * 32,) per token id the state behind it, DEAD for end-of-sequence and what is not allowed."""
        ...

    def outgrown(self, states: float, nfa_states: float) -> bool:
        """Whether it has more states than this, or one of its NFAs has."""
        ...

    @property
    def num_states(self) -> int:
        """States made so far, those of the automata inside it included."""
        ...

    @property
    def num_masks(self) -> int:
        """Different masks in the cache."""
        ...

    @property
    def num_masked_states(self) -> int:
        """States whose mask is known; those that only count differently are one."""
        ...

    @property
    def nbytes(self) -> int:
        """About what it takes; may be asked by any thread."""
        ...


def unfold(lowering: Lowering, item: int, vocabulary: Vocabulary) -> Unfolding:
    """The automaton of `item`, compiled code's where that is there."""
    library = native.library()
    if library is None:
        return Unfolded(lowering, item, vocabulary)
    return native.NativeUnfolding(library, vocabulary.native(library), lowering.nfa, item, lowering.budget)


class Unfolded:
    """In Python and numpy."""

    def __init__(self, lowering: Lowering, item: int, vocabulary: Vocabulary) -> None:
        self.nfa = lowering.nfa
        self.budget: Budget = lowering.budget
        self.vocabulary = vocabulary
        self.machine: Subset = lowering.subset(item)
        self.masks = Masks(vocabulary, self.machine, self.budget)
        self.start = self.machine.start
        self.accepts, self.segments, self.mask = self.machine.accepts, self.machine.segments, self.masks.mask
        self.prefetch = self.masks.prefetch
        shared = self.masks.table.machine is self.machine
        self._table = self.masks.table if shared else Table(self.machine)  # of exact states

    def read(self, state: int, data: bytes) -> int:
        for byte in data:
            state = step(self.machine, state, byte)
            if state == DEAD:
                return DEAD
        return state

    def forced(self, state: int, most: int) -> tuple[bytes, int]:
        data = bytearray()
        while len(data) < most and not self.accepts(state):
            segments = self.segments(state)
            if len(segments) != 1 or segments[0][0] != segments[0][1]:
                break
            data.append(segments[0][0])
            state = segments[0][2]
        return bytes(data), state

    def members(self, state: int) -> tuple[int, ...]:
        return self.machine.members[state]

    def behind_tokens(self, state: int) -> npt.NDArray[np.int32]:
        trie = self.vocabulary.trie
        nodes, reached = walk(self._table, trie, state)
        at_node = np.zeros(trie.num_nodes, np.int32)
        at_node[nodes] = reached
        behind = np.zeros(self.vocabulary.mask_words * 32, np.int32)
        behind[trie.token_ids] = at_node[trie.token_nodes]
        return behind

    def outgrown(self, states: float, nfa_states: float) -> bool:
        most = max(len(self.nfa.items), len(self.masks.nfa.items))
        return self.budget.states > states or most > nfa_states

    @property
    def num_states(self) -> int:
        return self.budget.states

    @property
    def num_masks(self) -> int:
        return self.masks.num_distinct

    @property
    def num_masked_states(self) -> int:
        return self.masks.num_masked_states

    @property
    def nbytes(self) -> int:
        return self.masks.nbytes + _STATE_BYTES * self.budget.states
