"""One server on the tiny model for the endpoint tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from palmette.runtime.models.tiny import tiny_model
from tests.runtime.server.serving import Served, serving


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """A server on the tiny model: random weights, a token is a byte."""
    with serving(tiny_model()) as running:
        yield running
