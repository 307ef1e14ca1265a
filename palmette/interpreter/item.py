"""What waits in a stream's queue, and how it ends."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from palmette.errors import PalmetteError, ProgramError
from palmette.interpreter.cursor import Cursor
from palmette.interpreter.hole import Hole
from palmette.interpreter.names import Names
from palmette.ir import Fork, Node

if TYPE_CHECKING:  # a stream's queue holds items: types only
    from palmette.interpreter.stream import Stream


@dataclass(slots=True)
class Item:
    """A node in the queue, with the holes it fills and the branches it releases or awaits."""

    seq: int
    node: Node | None  # None = a barrier: `done` tells that everything before it was executed
    holes: dict[str, Hole] = field(default_factory=dict)
    branches: tuple[Stream, ...] = ()
    save: SavePoint | None = None  # what a checkpoint fills and a rollback restores
    done: Future[None] | None = None
    dropped: bool = False  # a rollback passed over it while it was executed


@dataclass(slots=True)
class SavePoint:
    """What a rollback restores: names at once, the rest, known when the checkpoint was executed, on the loop."""

    names: Names | None  # None = there were none
    seq: int = -1  # of the checkpoint's item; the author's side
    cursor: Cursor | None = None
    scope_starts: tuple[tuple[str, int], ...] = ()


def hole_name(item: Item) -> str | None:
    return next((name for name in item.holes if name), None)


def settle(item: Item, error: PalmetteError | None) -> None:
    """Whatever became of an item, nobody waits for it any longer."""
    for hole in item.holes.values():
        hole.fail(error or ProgramError("the node was executed but did not fill its hole", hole=hole_name(item)))
    if error is not None and isinstance(item.node, Fork):
        for branch in item.branches:
            branch.abort(error)
    if item.done is not None and not item.done.done():
        item.done.set_result(None)
