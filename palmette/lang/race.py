"""Waiting for one of several branches and cancelling the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from palmette.errors import BlockingRead, InvalidOption, PalmetteError
from palmette.interpreter.stream import runs_event_loop
from palmette.lang.state import State


def race(states: Sequence[State]) -> State:
    """The state that ends first, whether it succeeded or failed; the others and their branches are cancelled.

    A state ends when everything appended to it so far was executed. Blocks; in a coroutine use `arace`.
    """
    return _blocking(states, must_succeed=False)


def first(states: Sequence[State]) -> State:
    """The state that succeeds first; the others are cancelled. Fails with the first error if all of them fail."""
    return _blocking(states, must_succeed=True)


async def arace(states: Sequence[State]) -> State:
    """`race` for a coroutine."""
    return await _winner(states, must_succeed=False)


async def afirst(states: Sequence[State]) -> State:
    """`first` for a coroutine."""
    return await _winner(states, must_succeed=True)


def _blocking(states: Sequence[State], *, must_succeed: bool) -> State:
    if runs_event_loop():
        raise BlockingRead("race", "await arace(...)")
    _check(states)
    return states[0]._stream.run.executor.start(_winner(states, must_succeed=must_succeed)).result()


async def _winner(states: Sequence[State], *, must_succeed: bool) -> State:
    _check(states)
    waits = {asyncio.ensure_future(state.wait()): state for state in states}
    winner: State | None = None
    errors: list[PalmetteError] = []
    try:
        pending = set(waits)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for wait in sorted(done, key=lambda w: list(waits).index(w)):
                state = waits[wait]
                error = state._stream.error
                if error is None or not must_succeed:
                    winner = state
                    return winner
                state._stream.error_was_read = True
                errors.append(error)
        raise errors[0]
    finally:
        for wait, state in waits.items():
            wait.cancel()
            if state is not winner:
                state.cancel()


def _check(states: Sequence[State]) -> None:
    if not states:
        raise InvalidOption("states", states, "at least one state")
