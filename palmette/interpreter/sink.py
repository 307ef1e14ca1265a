"""What a state appends to: a running stream, or the recorder of a trace. `run` and `trace` differ in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from palmette.interpreter.hole import Hole
from palmette.ir import JoinMode, JoinPolicy, Node, SourcePos


class Sink(Protocol):
    def append(self, node: Node) -> Hole | None: ...

    def read(self, name: str) -> Any: ...

    def read_last(self) -> Any:
        """The value of the hole appended last."""
        ...

    def names(self) -> list[str]: ...

    def open_scope(self, name: str) -> None: ...

    def close_scope(self) -> None: ...

    def fork(self, size: int, source: SourcePos | None) -> Sequence[Sink]: ...

    def join(self, branches: Sequence[Any], mode: JoinMode, policy: JoinPolicy, source: SourcePos | None) -> None: ...

    def checkpoint(self, source: SourcePos | None) -> int: ...

    def rollback(self, index: int, source: SourcePos | None) -> None: ...

    def host_step(self, name: str, source: SourcePos | None) -> None:
        """The author's own Python decides here."""
        ...
