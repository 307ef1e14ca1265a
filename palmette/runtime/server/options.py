"""Options of a runtime and limits of a server out of NAME=VALUE texts, as a command line has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from palmette.errors import InvalidOption
from palmette.runtime.config import RUNTIME_OPTIONS, RuntimeConfig, runtime_config
from palmette.runtime.server.config import ServerLimits

_LIMITS = tuple(field.name for field in fields(ServerLimits))


def server_options(model: str, texts: Iterable[str]) -> tuple[RuntimeConfig, ServerLimits]:
    """A value is JSON where it can be read as such (4096, true, 0.5), else a text.

    Raises:
        InvalidOption: no NAME=VALUE, an unknown name, or a value out of range.
    """
    runtime: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for text in texts:
        name, equals, raw = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in (*RUNTIME_OPTIONS, *_LIMITS) or name in ("model_path", "constraint_limits"):
            known = ", ".join(sorted({*RUNTIME_OPTIONS, *_LIMITS} - {"model_path", "constraint_limits"}))
            raise InvalidOption("option", text, f"NAME=VALUE with a name out of {known}")
        (runtime if name in RUNTIME_OPTIONS else limits)[name] = _value(raw)
    return runtime_config(model, runtime), ServerLimits(**limits)


def _value(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw
