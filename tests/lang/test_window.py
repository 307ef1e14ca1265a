"""However many instances a batch has, a bounded number of them is in flight."""

from __future__ import annotations

import asyncio

import pytest

import palmette as pm
from palmette.testing import ScriptedBackend


class Crowd:
    """How many bodies are between their first and their last line."""

    def __init__(self) -> None:
        self.now = self.most = 0

    @property
    def program(self) -> pm.Program:
        @pm.function
        async def body(s: pm.State, number: int) -> int:
            self.now += 1
            self.most = max(self.most, self.now)
            s += f"{number}" + pm.gen("a", max_tokens=2)
            await s.get("a")
            await asyncio.sleep(0)
            self.now -= 1
            return number

        return body


def test_a_batch_of_coroutine_bodies_runs_in_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palmette.lang.batch.WINDOW", 7)
    crowd = Crowd()
    backend = ScriptedBackend(lambda prompt: "x")
    assert crowd.program.map(range(200), backend=backend) == list(range(200))
    assert 1 < crowd.most <= 7


def test_amap_keeps_to_max_in_flight() -> None:
    crowd = Crowd()
    backend = ScriptedBackend(lambda prompt: "x")
    values = asyncio.run(crowd.program.amap(range(100), backend=backend, max_in_flight=5))
    assert values == list(range(100))
    assert 1 < crowd.most <= 5
