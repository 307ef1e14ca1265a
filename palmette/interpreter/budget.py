"""What a run may spend. Tokens are reserved before a hole and given back after it, so a budget is never exceeded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from palmette.errors import BudgetExceeded, InvalidOption


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one run; None = no limit.

    Attributes:
        tokens: generated tokens, over all holes of the program.
        seconds: from the start of the run to its end.
        calls: holes that reach the model (`gen` with n counts n).
    """

    tokens: int | None = None
    seconds: float | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "seconds", "calls"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
                raise InvalidOption(name, value, "a positive number")


class Purse:
    """What is left of a Budget. Lives on the executor's loop."""

    __slots__ = ("_calls", "_changed", "_reserved", "_tokens")

    def __init__(self, budget: Budget) -> None:
        self._tokens = budget.tokens
        self._calls = budget.calls
        self._reserved = 0
        self._changed: asyncio.Event | None = None

    async def reserve(self, tokens: int, calls: int) -> int:
        """Take `calls` calls and up to `tokens` tokens; waits while other holes hold what is missing.

        Returns the tokens granted, at least 1 a call unless 0 were asked for.

        Raises:
            BudgetExceeded: nothing is left.
        """
        if self._calls is not None:
            if self._calls < calls:
                raise BudgetExceeded("the run's budget of calls is used up")
            self._calls -= calls
        if self._tokens is None or tokens == 0:
            return tokens
        while self._tokens < calls:
            if self._reserved == 0:
                raise BudgetExceeded("the run's budget of tokens is used up")
            self._changed = self._changed or asyncio.Event()
            await self._changed.wait()
        granted = min(tokens, self._tokens)
        self._tokens -= granted
        self._reserved += granted
        return granted

    def settle(self, granted: int, used: int) -> None:
        """Give back what a hole did not use."""
        if self._tokens is None or granted == 0:
            return
        self._reserved -= granted
        self._tokens += granted - min(used, granted)
        if self._changed is not None:
            self._changed.set()
            self._changed = None
