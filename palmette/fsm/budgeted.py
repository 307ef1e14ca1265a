"""Masks under a token budget: only tokens after which an accepting end still fits.

A token is allowed iff the upper bound on the tokens from the state behind it is at most the budget left minus one. The
bound falls by one along the greedy tokenization of the shortest end, so whoever starts within budget always has a way.
Prior art: TruncProof.
"""

from __future__ import annotations

import numpy as np

from palmette.errors import RequestError
from palmette.fsm.automaton import Automaton
from palmette.fsm.slices import Mask, pack


def budgeted_mask(automaton: Automaton, state: int, budget: int) -> Mask:
    """The mask of `state` with `budget` tokens left, end-of-sequence among them.

    Raises:
        RequestError: the bound from `state` itself is above `budget`.
    """
    cost = automaton.cost_to_accept(state)
    if cost > budget:
        raise RequestError(
            f"the shortest text that satisfies the constraint from here may need {cost} tokens, and {budget} are left: "
            "raise max_new_tokens"
        )
    ids, costs = automaton.token_costs(state)
    if len(costs) == 0 or int(costs.max()) < budget:
        return automaton.mask(state)
    bits = np.zeros(automaton.vocabulary.mask_words * 32, bool)
    bits[ids[costs < budget]] = True
    if automaton.accepts(state):
        bits[list(automaton.vocabulary.eos_ids)] = True
    return pack(bits)
