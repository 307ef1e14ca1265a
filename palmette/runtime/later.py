"""A value that a device may still be computing.

The step path queues its work and asks for values when it needs them, so that a CPU and a GPU work at the same time.
Where nothing is computed in the background, a value is there at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Later(Protocol[T_co]):
    """Asked for as often as one likes; the first time may wait for the device."""

    def get(self) -> T_co: ...


class Now(Generic[T]):
    """A value that is there."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def get(self) -> T:
        return self._value


class Deferred(Generic[T]):
    """A value made by `make` when it is first asked for; `make` waits for whatever it needs."""

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make

    def get(self) -> T:
        if self._make is not None:
            self._value = self._make()
            self._make = None
        return self._value
