"""A child process and its parent: settings come as the first line of stdin, and stdin's end is the end of the child.

    parent --{"settings"}\\n--> child      later lines are messages
           --EOF----------->  child      the parent is gone, however it went: clean up and leave

No signal and no process group is needed for that, and it works when the parent was killed with -9.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
PARENT_GONE = 70  # the exit code of a child whose parent left
_to_parent = 1  # file descriptor; a process has one parent


class ProcessSettings(msgspec.Struct, frozen=True):
    """What both children are started with."""

    directory: str  # of the sockets; 0700
    secret: str  # of the wire, hex


def lines(fd: int = 0) -> Iterator[bytes]:
    """The lines of a pipe until its end. Not through sys.stdin, whose lock a daemon thread must not hold at exit."""
    rest = b""
    while data := os.read(fd, 1 << 16):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def read_settings(source: Iterator[bytes], kind: type[T]) -> T:
    """The first line.

    Raises:
        SystemExit: the parent left before it said anything.
    """
    first = next(source, None)
    if first is None:
        raise SystemExit(PARENT_GONE)
    return msgspec.json.decode(first, type=kind)


def hold(source: Iterator[bytes], directory: str, on_line: Callable[[bytes], object] | None = None) -> None:
    """Watch stdin on a thread of its own: hand on its lines, and leave the process at its end."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            for line in source:
                if on_line is not None:
                    on_line(line)
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(PARENT_GONE)

    threading.Thread(target=watch, name="palmette-lease", daemon=True).start()


def own_stdout() -> None:
    """Keep stdout for `tell`: whatever a library prints from here on goes to stderr."""
    global _to_parent
    _to_parent = os.dup(1)
    os.dup2(2, 1)


def tell(message: object) -> None:
    """Write one line to the parent, at once."""
    data = msgspec.json.encode(message) + b"\n"
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: stdin says so too
        os.write(_to_parent, data)


def engine_addresses(directory: str, generation: int) -> tuple[str, str]:
    """Where the engine of this generation takes messages, and where it sends them."""
    base = Path(directory) / f"engine-{generation}"
    return f"ipc://{base}.in", f"ipc://{base}.out"
