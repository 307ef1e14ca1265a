"""Streaming a typed hole: the parts of its value that are closed, each time one more is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from palmette.interpreter.hole import Hole
from palmette.interpreter.partial import PartialJson
from palmette.ir import Gen


def is_typed(hole: Hole) -> bool:
    """Whether the hole is streamed as parts of its value. Reasoning and what stands beside tool calls are text."""
    node = hole.node
    if not isinstance(node, Gen) or node.name != hole.name or node.constraint is None:
        return False
    binding = node.constraint.binding
    return binding is not None and binding.parse is not None and binding.shown is None


def partials(hole: Hole, pieces: Iterator[str]) -> Iterator[Any]:
    """Plain data from pieces of text: one item for each piece that closed something in a container."""
    reader = _reader(hole)
    for piece in pieces:
        if reader is not None and reader.feed(piece) and (part := reader.snapshot()) is not None:
            yield part


async def apartials(hole: Hole, pieces: AsyncIterator[str]) -> AsyncIterator[Any]:
    """The same, for `async for`."""
    reader = _reader(hole)
    async for piece in pieces:
        if reader is not None and reader.feed(piece) and (part := reader.snapshot()) is not None:
            yield part


def _reader(hole: Hole) -> PartialJson | None:
    """None for a text that is not JSON: nothing of it is known before it is whole."""
    binding = hole.node.constraint.binding
    return PartialJson() if binding.is_json else None
