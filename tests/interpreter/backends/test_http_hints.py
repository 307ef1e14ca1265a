"""Hints on their way: in order within a program, ends of many together, none waited for, none more than the bound."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from palmette.errors import EngineDied
from palmette.interpreter.backends import http_hints
from palmette.interpreter.backends.http_hints import Hints
from palmette.interpreter.backends.http_palmette import PalmetteDialect
from palmette.types import BranchesEnded, ForkDeclared, ProgramEnded, ProgramEvent


class Server:
    """What is written and sent; a send takes a turn of the loop, and may fail."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.told: list[list[ProgramEvent]] = []
        self.fails = False
        self.hints = Hints(self.spawn, self.write, self.send)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(work))

    async def write(self, events: Sequence[ProgramEvent]) -> list[tuple[str, dict[str, Any]]]:
        return [("/path", {"events": list(events)})]

    async def send(self, path: str, body: dict[str, Any], seconds: float) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise EngineDied("nobody answers")
        self.told.append(body["events"])

    async def over(self) -> None:
        while any(not task.done() for task in self.tasks):
            await asyncio.sleep(0)
        for task in self.tasks:
            task.result()


def test_ends_of_one_moment_go_together() -> None:
    async def run() -> list[list[ProgramEvent]]:
        server = Server()
        for i in range(20):
            server.hints.put(ProgramEnded(f"p{i}"))
            if i == 0:
                await asyncio.sleep(0)  # it is on its way
        await server.over()
        server.hints.put(ProgramEnded("later"))
        await server.over()
        assert server.hints._num_waiting == 0
        return server.told

    told = asyncio.run(run())
    assert [len(events) for events in told] == [1, 19, 1]
    assert [event.program for events in told for event in events] == [*(f"p{i}" for i in range(20)), "later"]


def test_a_programs_end_comes_behind_what_it_said_before() -> None:
    fork, gone = ForkDeclared("p", (1, 2), 3, ""), BranchesEnded("p", (1, 2), 1, "")

    async def run() -> list[ProgramEvent]:
        server = Server()
        for event in (fork, gone, ProgramEnded("p"), ProgramEnded("q")):
            server.hints.put(event)
        await server.over()
        return [event for events in server.told for event in events]

    told = asyncio.run(run())
    assert [event for event in told if event.program == "p"] == [fork, gone, ProgramEnded("p")]
    assert ProgramEnded("q") in told


def test_what_is_lost_is_lost_and_the_next_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_hints, "_ENDS_AT_ONCE", 2)

    async def run() -> list[int]:
        server = Server()
        server.fails = True
        for i in range(5):
            server.hints.put(ProgramEnded(f"p{i}"))
        server.hints.put(ForkDeclared("f", (1,), 2, ""))
        await server.over()
        assert server.told == []
        server.fails = False
        for i in range(5):
            server.hints.put(ProgramEnded(f"p{i}"))
        await server.over()
        assert server.hints._num_waiting == 0
        return [len(events) for events in server.told]

    assert asyncio.run(run()) == [2, 2, 1]


def test_no_more_wait_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_hints, "MAX_WAITING", 3)

    async def run() -> int:
        server = Server()
        for i in range(9):
            server.hints.put(ProgramEnded(f"p{i}"))
        await server.over()
        return sum(map(len, server.told))

    assert asyncio.run(run()) == 3


def test_a_server_is_told_as_it_understands() -> None:
    none, one, many = (
        PalmetteDialect(constraints=frozenset(), takes_hints=hints, takes_ends=ends)
        for hints, ends in ((False, True), (True, False), (True, True))
    )
    assert none.ends(["a", "b"]) == []
    assert one.ends(["a", "b"]) == [("/program/end", {"program": "a"}), ("/program/end", {"program": "b"})]
    assert many.ends(["a", "b"]) == [("/program/end", {"programs": ["a", "b"]})]
    assert many.ends(["a"]) == [("/program/end", {"program": "a"})]
    assert many.ends([]) == []
