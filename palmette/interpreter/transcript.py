"""The whole text of a stream as it is written, for whoever iterates over it.

Lives on the executor's loop. What a rollback undoes was shown all the same.
"""

from __future__ import annotations

from palmette.interpreter.cursor import Cursor
from palmette.interpreter.hole import Filled, Hole


class Transcript:
    """Deals text out to watchers. A watcher is a hole without a value, whose pieces are the text."""

    __slots__ = ("_shown", "_watchers")

    def __init__(self) -> None:
        self._watchers: list[Hole] = []
        self._shown: list[str] = []  # of the node that is being executed: the stream's cursor does not have it yet

    def emit(self, text: str) -> None:
        self._shown.append(text)
        for watcher in self._watchers:
            watcher.push(text)

    def begin(self, base: Cursor) -> None:
        """A branch starts behind the text of `base`, which is its own too. Joins that text only if somebody watches."""
        if self._watchers:
            text = base.text_from(0)
            for watcher in self._watchers:
                watcher.push(text)

    def settled(self) -> None:
        """The node that emitted was executed: its text is in the cursor, or dropped."""
        self._shown.clear()

    def watch(self, text: str) -> Hole:
        """A watcher of what comes behind `text`, the text of the cursor."""
        watcher = Hole(None, None, -1)
        watcher.push(text + "".join(self._shown))
        self._watchers.append(watcher)
        return watcher

    def dismiss(self, watcher: Hole, error: BaseException | None) -> None:
        """End a watcher's text, with an error if there is one."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
        if error is None:
            watcher.fill(Filled(value=None))
        else:
            watcher.fail(error)

    def close(self, error: BaseException | None) -> None:
        for watcher in list(self._watchers):
            self.dismiss(watcher, error)
