"""Masks under a token budget: only tokens after which an accepting end still fits.

A token is allowed iff the upper bound on the tokens from the state behind it (`costs`) is at most the budget left minus
one. From every state some token lowers the bound by one, so whoever starts within budget always has a way. While the
budget is above whatever one token can lead to, the mask is the plain one. Prior art: TruncProof.
"""

from __future__ import annotations

from palmette.errors import RequestError
from palmette.fsm.automaton import NO_WAY, Automaton
from palmette.fsm.slices import Mask, pack


def budgeted_mask(automaton: Automaton, state: int, budget: int) -> Mask:
    """The mask of `state` with `budget` tokens left, end-of-sequence among them.

    Raises:
        RequestError: the bound from `state` itself is above `budget`.
    """
    if automaton.peak(state) < budget:
        return automaton.mask(state)
    cost = automaton.cost_to_accept(state)
    if cost > budget:
        raise RequestError(
            f"the shortest text that satisfies the constraint from here may need {cost} tokens, and {budget} are left: "
            "raise max_new_tokens"
        )
    if automaton.worst_cost(state) < budget:
        return automaton.mask(state)
    bits = automaton.token_costs(state) < min(budget, NO_WAY)
    if automaton.accepts(state):
        bits[list(automaton.vocabulary.eos_ids)] = True
    return pack(bits)
