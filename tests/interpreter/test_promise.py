"""A promise is a future as everybody knows it, and the executor's cancels what it stands for."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, InvalidStateError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.errors import HoleTimeout
from palmette.interpreter.executor import Executor, Generated
from palmette.interpreter.hole import Hole, awaited
from palmette.interpreter.names import Names
from palmette.interpreter.promise import Promise
from palmette.testing import ScriptedBackend
from palmette.types import Deliver, Finish, FinishReason, GenerateRequest, Request, TokenEvent


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor()
    yield made
    made.close()


def test_a_promise_hands_its_value_to_whoever_waits_and_whoever_asks_later() -> None:
    promise: Promise[int] = Promise()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(promise.result(10.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert (promise.done(), promise.running()) == (False, True)
    promise.set_result(7)
    for thread in threads:
        thread.join(10.0)
    assert found == [7] * 4
    assert (promise.result(), promise.exception(), promise.done(), promise.cancelled()) == (7, None, True, False)


def test_a_promise_raises_its_error_in_every_read() -> None:
    promise: Promise[int] = Promise()
    error = KeyError("gone")
    promise.set_exception(error)
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            promise.result()
        assert caught.value is error
    assert promise.exception() is error


def test_a_promise_is_ended_once() -> None:
    promise: Promise[int] = Promise()
    assert promise.cancel()
    assert not promise.cancel()
    with pytest.raises(InvalidStateError):
        promise.set_result(1)
    with pytest.raises(InvalidStateError):
        promise.set_exception(KeyError())
    with pytest.raises(CancelledError):
        promise.result()
    with pytest.raises(CancelledError):
        promise.exception()
    assert promise.cancelled()


def test_a_promise_that_does_not_come_in_time_says_so() -> None:
    with pytest.raises(TimeoutError):
        Promise[int]().result(0.01)


def test_callbacks_are_called_once_even_behind_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    promise: Promise[int] = Promise()
    called: list[object] = []

    def fails(_: object) -> None:
        raise ValueError("mine")

    promise.add_done_callback(fails)
    promise.add_done_callback(called.append)
    promise.set_result(1)
    promise.add_done_callback(called.append)
    assert called == [promise, promise]
    assert "a callback of a future failed" in caplog.text


def test_a_coroutine_on_any_loop_awaits_a_promise_and_may_give_up() -> None:
    promise: Promise[int] = Promise()

    async def run() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited(promise), 0.01)
        threading.Timer(0.01, promise.set_result, [3]).start()
        return await awaited(promise)

    assert asyncio.run(run()) == 3


def test_cancelling_what_the_executor_started_cancels_the_coroutine(executor: Executor) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.sleep(60.0)
        finally:
            ended.set()

    started = executor.start(waits())
    assert begun.wait(10.0)
    assert started.cancel()
    assert ended.wait(10.0)
    with pytest.raises(CancelledError):
        started.result()


def test_the_executor_hands_out_results_errors_and_cancellations(executor: Executor) -> None:
    async def gives() -> int:
        return 5

    async def fails() -> int:
        raise KeyError("no")

    async def is_cancelled() -> int:
        raise asyncio.CancelledError

    assert executor.start(gives()).result(10.0) == 5
    with pytest.raises(KeyError):
        executor.start(fails()).result(10.0)
    with pytest.raises(CancelledError):
        executor.start(is_cancelled()).result(10.0)


def test_a_request_fails_with_its_backends_own_words(executor: Executor) -> None:
    class Late(ScriptedBackend):
        def submit(self, request: Request, deliver: Deliver) -> None:
            error = HoleTimeout("the queue was long")
            deliver([TokenEvent(request.request_id, finish=Finish(FinishReason.CANCELLED, error=error))])

    backend, progress = Late(), Generated()
    asking = executor.generate(backend, GenerateRequest("r", (1,), timeout=60.0), lambda text: None, progress)
    with pytest.raises(HoleTimeout, match="the queue was long"):
        executor.start(asking).result(10.0)
    assert backend.cancelled == []
    assert progress.finish.reason is FinishReason.CANCELLED


def test_a_promise_is_small() -> None:
    assert sys.getsizeof(Promise()) <= 128
    assert not vars(Promise())


# -- names ---------------------------------------------------------------------------------------------------------

STEPS = st.lists(st.one_of(st.integers(0, 7), st.sampled_from(["share", "branch", "back"])), max_size=30)


@given(STEPS)
def test_names_in_layers_are_a_dict_that_is_copied(steps: list[int | str]) -> None:
    """Of every branch and every savepoint, whatever the others define since."""
    names: list[tuple[Names, dict[str, Hole]]] = [(Names(), {})]
    saved: list[tuple[Names | None, dict[str, Hole]]] = []
    for i, step in enumerate(steps):
        mine, model = names[i % len(names)]
        if isinstance(step, int):
            hole = Hole(f"n{step}", None, i)
            mine[f"n{step}"] = model[f"n{step}"] = hole
        elif step == "share":
            saved.append((mine.share(), dict(model)))
        elif step == "branch":
            names.append((Names(mine.share()), dict(model)))
        elif saved:
            shared, then = saved[i % len(saved)]
            names.append((Names(shared), dict(then)))
    for mine, model in [*names, *((Names(shared), then) for shared, then in saved)]:
        assert list(mine) == list(model)
        assert all(mine.get(f"n{k}") is model.get(f"n{k}") for k in range(8))
        assert all((f"n{k}" in mine) == (f"n{k}" in model) for k in range(8))


def test_names_are_found_through_few_layers() -> None:
    names = Names()
    for i in range(1000):
        names[f"n{i}"] = Hole(f"n{i}", None, i)
        names.share()
    depth, layer = 0, names._below
    while layer is not None:
        depth, layer = depth + 1, layer._below
    assert depth <= 11
    assert list(names) == [f"n{i}" for i in range(1000)]
