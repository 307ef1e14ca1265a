"""Teams of processes that the tests of a folder share: a team serves one model after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from palmette.runtime.parallel.team import Team


@pytest.fixture(scope="session")
def team() -> Iterator[Callable[[int], Team]]:
    """team(size): the processes of that many ranks, started when they are first asked for."""
    with contextlib.ExitStack() as stack:
        teams: dict[int, Team] = {}

        def get(size: int) -> Team:
            if size not in teams:
                teams[size] = Team(size, timeout=60.0)
                stack.callback(teams[size].close)
            return teams[size]

        yield get
