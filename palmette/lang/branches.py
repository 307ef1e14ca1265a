"""The branches of a fork, as one thing to append to and to join."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, get_args, overload

from palmette.errors import BranchEnded, InvalidOption
from palmette.interpreter.sink import Sink
from palmette.ir import Expr, JoinMode, JoinPolicy, author_position
from palmette.lang.state import State


class Branches(Sequence[State]):
    """`len`, iteration, indexing, `+=` and `join`; as a context manager it joins behind the block."""

    def __init__(self, parent: State, states: list[State]) -> None:
        self._parent = parent
        self._states = states
        self._joined = False

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> list[State]: ...
    def __getitem__(self, index: int | slice) -> State | list[State]:
        return self._states[index]

    def __setitem__(self, index: int, state: State) -> None:
        """`branches[i] += expr` assigns the same state back; nothing else can be put here."""
        if self._states[index] is not state:
            raise InvalidOption("branch", state, f"the state that already is branch {index}")

    def __iter__(self) -> Iterator[State]:
        return iter(self._states)

    def __iadd__(self, expr: str | Expr | Sequence[Any] | Callable[[int], Any]) -> Branches:
        """Append one expression to all, a list with one for each, or what a callable of the index returns."""
        if isinstance(expr, str | Expr):
            items: Sequence[Any] = [expr] * len(self)
        elif callable(expr):
            source = author_position()
            sink: Sink = self._parent._sink
            sink.host_step(getattr(expr, "__qualname__", repr(expr)), source)
            items = [expr(i) for i in range(len(self))]
        else:
            items = list(expr)
            if len(items) != len(self):
                raise InvalidOption("+=", f"{len(items)} expressions", f"one for each of the {len(self)} branches")
        for state, item in zip(self._states, items, strict=True):
            state += item
        return self

    def join(self, mode: JoinMode = "gather_variable", on_error: JoinPolicy = "all") -> None:
        """End the branches and bring what they made into the parent. Submits and returns; a read waits.

        Args:
            mode: "gather_variable": names that are new in the branches become lists in fork order, their text is
                dropped. "concate_and_append": the branches' text follows the parent's, in fork order.
            on_error: "all": wait for every branch, then raise BranchError for the first that failed. "first_error":
                cancel the others at once. "collect": a failed branch contributes its error in the list.

        Raises:
            InvalidOption: another mode or policy.
            BranchEnded: they were joined before.
        """
        source = author_position()
        if mode not in get_args(JoinMode):
            raise InvalidOption("mode", mode, "'gather_variable' or 'concate_and_append'").at(source=source)
        if on_error not in get_args(JoinPolicy):
            raise InvalidOption("on_error", on_error, "'all', 'first_error' or 'collect'").at(source=source)
        if self._joined:
            raise BranchEnded("these branches were joined before", source=source)
        self._joined = True
        sinks = [state._sink for state in self._states]
        self._parent._sink.join(sinks, mode, on_error, source)

    def cancel(self) -> None:
        """Abort every branch."""
        for state in self._states:
            state.cancel()

    @contextmanager
    def cancelled_on_error(self) -> Iterator[None]:
        """Leave no branch running behind a block that raised."""
        try:
            yield
        except BaseException:
            self.cancel()
            raise

    def __enter__(self) -> Branches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.cancel()
        elif not self._joined:
            self.join()
