"""Finding the compiled libraries of the package, which may be missing, and saying why.

    palmette/kernels/cpu/_core.native     the decoder on a CPU
    palmette/fsm/_automaton.native        walking automata

Both are plain C functions behind ctypes, built by setup.py where a C++ compiler is there. Each has a slower twin in
torch or Python that is its oracle and its fallback. Knows files, not what is in them.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from palmette.errors import InvalidOption


class NotBuilt(Exception):
    """A compiled library that is not there or does not load; says why. Always caught: there is another way."""


def load_library(folder: Path, name: str) -> ctypes.CDLL:
    """The library `name` in the package folder `folder`.

    Raises:
        NotBuilt: it was not built, it does not load, or PALMETTE_NATIVE=0 says not to use it.
    """
    if not is_wanted():
        raise NotBuilt("PALMETTE_NATIVE=0 is set")
    file = folder / f"{name}.native"
    if not file.is_file():
        raise NotBuilt("it was not built: install a C++17 compiler, then install palmette again")
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NotBuilt(f"it does not load: {error}") from error


def is_wanted() -> bool:
    """Does the environment variable PALMETTE_NATIVE allow compiled code? 1 (the default) or 0.

    Raises:
        InvalidOption: it says something else.
    """
    value = os.environ.get("PALMETTE_NATIVE", "1")
    if value not in ("0", "1"):
        raise InvalidOption("PALMETTE_NATIVE", value, "0 or 1")
    return value == "1"
