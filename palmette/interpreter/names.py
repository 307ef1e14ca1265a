"""The names of a stream, as layers: a fork or a checkpoint shares what there is, and each side writes above it.

    parent   [ a b c ] <-- [ d ]
                  ^------- [ e ]   a branch

Knows names and holes. Does not know who defined them, and has no lock: a stream guards its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from palmette.interpreter.hole import Hole


class Names:
    """Names and the holes that they stand for, in the order in which they were first defined."""

    __slots__ = ("_below", "_own")

    def __init__(self, below: Names | None = None) -> None:
        """
        Args:
            below: what `share` gave: nobody writes there any more.
        """
        self._below = below
        self._own: dict[str, Hole] = {}

    def get(self, name: str) -> Hole | None:
        """O(log names) layers deep."""
        layer: Names | None = self
        while layer is not None:
            hole = layer._own.get(name)
            if hole is not None:
                return hole
            layer = layer._below
        return None

    def __setitem__(self, name: str, hole: Hole) -> None:
        self._own[name] = hole

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        layers: list[dict[str, Hole]] = []
        layer: Names | None = self
        while layer is not None:
            layers.append(layer._own)
            layer = layer._below
        return iter(dict.fromkeys(name for own in reversed(layers) for name in own))

    def share(self) -> Names | None:
        """What is defined now, for others to build on; from here on `self` writes above it too.

        A layer takes in the one below where that is no larger, so that there are few, and a name is copied seldom.
        """
        if self._own:
            own, below = self._own, self._below
            while below is not None and len(below._own) <= len(own):
                own, below = {**below._own, **own}, below._below
            shared = Names(below)
            shared._own = own
            self._below, self._own = shared, {}
        return self._below
