"""A progress bar around an iteration, drawn by rich, which is loaded only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def progressed(items: Iterator[T], total: int | None, *, enabled: bool) -> Iterator[T]:
    """The same items, counted on the terminal if `enabled`."""
    if not enabled:
        return items
    from rich.progress import track

    return iter(track(items, description="programs", total=total))
