"""Checkpoints and `retry`: try again from the same place, on the same cached prefix."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from palmette.errors import InvalidOption, InvalidValue, PalmetteError, RetryExhausted, Truncated
from palmette.interpreter.sink import Sink
from palmette.ir import author_position
from palmette.lang.state import State


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in one state that `rollback` goes back to."""

    index: int
    sink: Sink = field(repr=False)  # of that state


class Retry:
    """Iterate over attempts, with `for` or `async for`. Draws differ between attempts: holes are never counted back.

    An attempt in which `until` reads a typed hole that came to no value (InvalidValue, Truncated) has failed.
    """

    def __init__(self, state: State, until: Callable[[State], Any], attempts: int) -> None:
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
            raise InvalidOption("attempts", attempts, "an integer >= 1")
        self._state, self._until, self._attempts = state, until, attempts
        self._source = author_position()
        self._failed: PalmetteError | None = None  # what the last hole without a value said

    def __iter__(self) -> Iterator[int]:
        checkpoint = self._state.checkpoint()
        for attempt in range(self._attempts):
            yield attempt
            self._state._sink.host_step(self._name, self._source)
            if self._is_satisfied():
                return
            if attempt + 1 < self._attempts:
                self._state.rollback(checkpoint)
        raise self._exhausted()

    async def __aiter__(self) -> AsyncIterator[int]:
        """`until` is called when everything appended so far was executed, so that its reads never block."""
        checkpoint = self._state.checkpoint()
        for attempt in range(self._attempts):
            yield attempt
            self._state._sink.host_step(self._name, self._source)
            await self._state.wait()
            if self._is_satisfied():
                return
            if attempt + 1 < self._attempts:
                self._state.rollback(checkpoint)
        raise self._exhausted()

    def _is_satisfied(self) -> bool:
        try:
            return bool(self._until(self._state))
        except (InvalidValue, Truncated) as error:  # a hole that came to no value: this attempt failed
            self._failed = error
            return False

    @property
    def _name(self) -> str:
        return str(getattr(self._until, "__qualname__", repr(self._until)))

    def _exhausted(self) -> RetryExhausted:
        message = f"{self._name} was not satisfied in {self._attempts} attempts"
        error = RetryExhausted(message, source=self._source, state=self._state)
        error.__cause__ = self._failed
        return error
