"""Counterpart of `sglang.lang.api`."""

from typing import Any

import palmette


def __getattr__(name: str) -> Any:
    """Every name of the language, found when it is used: `Runtime` and `Engine` bring torch along."""
    return getattr(palmette, name)
