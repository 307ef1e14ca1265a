"""The one place with process-wide state: the default backend, the executor, and the `options` in force.

`set_default_backend` and `options` are part of the language, so something has to remember them; the options live in a
context variable and the rest in one object with a lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from palmette.errors import NoBackend
from palmette.interpreter.executor import Executor
from palmette.ir import DEFAULTS, HoleOptions
from palmette.types import Backend


class _Session:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self.backend: Backend | None = None

    def executor(self) -> Executor:
        with self._lock:
            if self._executor is None or self._executor.is_closed:
                self._executor = Executor()
            return self._executor


_session = _Session()
_options: ContextVar[HoleOptions] = ContextVar("palmette_options", default=DEFAULTS)


def set_default_backend(backend: Backend | None) -> None:
    """Run programs on this backend unless a run names another."""
    _session.backend = backend


def resolve_backend(backend: Backend | None) -> Backend:
    """Raises NoBackend if neither the call nor `set_default_backend` named one."""
    found = backend or _session.backend
    if found is None:
        raise NoBackend(
            'no backend: call palmette.set_default_backend(palmette.Runtime(model_path="smollm2")), or pass backend=...'
        )
    return found


def shared_executor() -> Executor:
    return _session.executor()


def current_options() -> HoleOptions:
    return _options.get()


@contextmanager
def options(**given: Any) -> Iterator[None]:
    """Sampling defaults for the runs inside the block, in this context only.

        with options(temperature=0, max_tokens=64):
            qa.run(question="...")

    Raises:
        InvalidOption: an unknown option or one out of range.
    """
    token = _options.set(HoleOptions.of(**given).over(_options.get()))
    try:
        yield
    finally:
        _options.reset(token)


def flush_cache(backend: Backend | None = None) -> None:
    """Drop every cached prefix that no request uses."""
    resolve_backend(backend).flush_cache()


def get_server_info(backend: Backend | None = None) -> dict[str, Any]:
    """What the backend says of itself: model, pool, counters."""
    return resolve_backend(backend).server_info()
