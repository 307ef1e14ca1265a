"""The language half is tested on scripts: what a program sends and gets back, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import palmette as pm
from palmette.testing import ScriptedBackend


def numbered(prompt: str) -> str:
    """A reply that tells how long its prompt was, so that replies differ."""
    return f" r{len(prompt)}"


@pytest.fixture
def backend() -> Iterator[ScriptedBackend]:
    """The default backend: every reply is a space, `r` and the length of the prompt."""
    backend = ScriptedBackend(numbered)
    pm.set_default_backend(backend)
    yield backend
    pm.set_default_backend(None)
    backend.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedBackend]]:
    """Make the default backend of a script."""
    made: list[ScriptedBackend] = []

    def make(*args: object, **kwargs: object) -> ScriptedBackend:
        made.append(ScriptedBackend(*args, **kwargs))  # type: ignore[arg-type]
        pm.set_default_backend(made[-1])
        return made[-1]

    yield make
    pm.set_default_backend(None)
    for backend in made:
        backend.close()
