"""Where in the author's file a node came from."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourcePos:
    """A line of the program that appended a node."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def author_position() -> SourcePos | None:
    """The innermost line on this thread's stack that is not the package's own (nor contextlib's, for `with` blocks)."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module not in ("palmette", "contextlib") and not module.startswith("palmette."):
            return SourcePos(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None
