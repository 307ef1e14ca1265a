"""Correct programs: each must type-check as it stands. Nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import palmette as pm
from palmette.interpreter.tracer import Trace
from palmette.testing import ScriptedBackend, tiny_runtime
from palmette.types import Backend, Usage


@pm.function
def plain(s: pm.State, question: str) -> None:
    s += "Q: " + question + "\nA:" + pm.gen("answer", max_tokens=8, stop="\n") + "!"
    s += pm.system("a") + pm.user(pm.gen("x")) + pm.assistant("b" + pm.gen("y"))
    s += pm.select("z", ["a", "b"], choices_method=pm.exact_probability)
    with s.user():
        s += "inside"
    s["mine"] = 1


@pm.function(num_api_spec_tokens=64)
async def coroutine(s: pm.State, n: int) -> str:
    s += pm.gen("x", dtype=int)
    value: str = await s.get("x")
    async for piece in s.text_async_iter("x"):
        assert_type(piece, Any)
    assert_type(s.gen(int), int)
    assert_type(await s.agen(dict[str, int]), dict[str, int])
    assert_type(s.gen("x"), Any)
    async for attempt in s.retry(until=lambda s: s["x"] == "1", attempts=n):
        assert_type(attempt, int)
    await s.wait()
    return value


@pm.function
def branches(s: pm.State) -> None:
    with s.fork(3) as group:
        assert_type(group, pm.Branches)
        assert_type(group[0], pm.State)
        assert_type(group[1:], list[pm.State])
        for branch in group:
            assert_type(branch, pm.State)
        group[0] += "one"
        group += pm.gen("all")
        group += ["a", pm.gen("b"), "c"]
        group += lambda i: f"{i}"
    with s.copy() as copy:
        copy += "dropped"
    here = s.checkpoint()
    s.rollback(here)
    winner = pm.first(list(group))
    assert_type(winner, pm.State)
    group.join("concate_and_append", on_error="collect")


def runs(backend: Backend) -> None:
    assert_type(plain, pm.Program)
    assert_type(coroutine, pm.Program)
    state = plain.run("why", backend=backend, temperature=0, budget=pm.Budget(tokens=5, seconds=1.5))
    assert_type(state, pm.State)
    assert_type(state.text(), str)
    assert_type(state.messages(), list[dict[str, str]])
    assert_type(state.usage, Usage)
    assert_type(state.error(), BaseException | None)
    assert_type(plain.run_batch([{"question": "a"}]), list[pm.State])
    assert_type(plain.run_batch([("a",)], generator_style=True), Iterator[pm.State])
    assert_type(plain.map(["a", "b"], on_error="return"), list[Any])
    assert_type(plain.stream("a"), Iterator[str])
    assert_type(plain.astream("a"), AsyncIterator[str])
    assert_type(plain.bind(question="a"), pm.Program)
    assert_type(plain.trace(), Trace)
    with pm.options(temperature=0):
        plain("a")


async def awaits() -> None:
    assert_type(await coroutine.arun(3), pm.State)
    assert_type(await coroutine.amap([1, 2], max_in_flight=5), list[Any])


def backends() -> list[Backend]:
    """Every backend of ours is one for mypy."""
    return [ScriptedBackend({"a": "b"}), pm.Runtime(model_path="smollm2"), tiny_runtime(kv_tokens=100)]
