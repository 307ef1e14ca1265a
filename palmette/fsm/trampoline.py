"""Recursion on an explicit stack: deep input costs memory, never Python frames.

A recursive function is written as a generator that yields the generators of its calls and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Call: TypeAlias = Generator[Any, Any, T]  # yields other Calls, receives their results


def run(call: Call[T]) -> T:
    """The result of `call`, with every call it yields run on this function's own stack."""
    stack: list[Call[Any]] = [call]
    value: Any = None
    while stack:
        try:
            inner = stack[-1].send(value)
        except StopIteration as done:
            stack.pop()
            value = done.value
        else:
            stack.append(inner)
            value = None
    result: T = value
    return result
