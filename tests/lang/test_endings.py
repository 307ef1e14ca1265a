"""What ends something ends all of it and nothing else: aborts, rollbacks, races, interrupts, readers that leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import palmette as pm
from palmette.lang.record import read_record, replay
from palmette.testing import ScriptedBackend
from palmette.types import BranchesEnded, GenerateRequest

Scripted = Callable[..., ScriptedBackend]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# -- branches and what is below them -----------------------------------------------------------------------------------


def test_a_rollback_aborts_the_branches_forked_since(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a"
        place = s.checkpoint()
        branches = s.fork(2)
        branches += "b" + pm.gen("x")
        backend.wait_for(2)
        s.rollback(place)
        for branch in branches:
            with pytest.raises(pm.Cancelled, match="rolled back"):
                branch["x"]
            with pytest.raises(pm.BranchEnded, match="rolled back"):
                branch += "more"
        s += "c"

    state = program.run()
    assert state.text() == "ac"
    assert len(backend.cancelled) == 2


def test_a_retry_whose_attempt_failed_in_a_branch_succeeds(scripted: Scripted) -> None:
    replies = iter(["bad", "good"])

    def reply(prompt: str) -> str:
        text = next(replies)
        if text == "bad":
            raise pm.RequestError("no")
        return text

    scripted(reply)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a"

        def fine(s: pm.State) -> bool:
            return branch.error() is None

        for _ in s.retry(until=fine):
            branch = s.fork(1)[0]
            branch += pm.gen("x")

    assert program.run().error() is None


def test_a_checkpoint_of_another_state_is_refused(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        place = s.checkpoint()
        with s.copy() as c:
            c.checkpoint()
            with pytest.raises(pm.UsageError, match="another state"):
                c.rollback(place)

    program.run()


def test_a_rollback_restores_the_scopes_that_were_open(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a"
        with s.var_scope("whole"):
            s += "b"
            place = s.checkpoint()
            with s.var_scope("inner"):
                s += "dropped"
            s.rollback(place)
            s += "c"

    state = program.run()
    assert state["whole"] == "bc"
    assert "inner" not in state


def test_a_branch_that_the_author_cancelled_does_not_fail_the_run(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> str:
        s += "a"
        branch = s.fork(1)[0]
        below = branch.fork(2)
        below += pm.gen("x")
        backend.wait_for(2)
        branch.cancel()
        return "done"

    assert program.run().ret_value == "done"
    assert len(backend.cancelled) == 2


def test_a_cancelled_branch_that_asked_for_nothing_is_told(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x")

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(3)
        branches[0] += pm.gen("x")
        assert branches[0]["x"] == "x"
        branches[1].cancel()
        branches[2].cancel()

    program.run()
    ended = [event for event in backend.program_events if isinstance(event, BranchesEnded)]
    assert sum(event.count for event in ended) == 2


def test_the_last_hole_of_a_branch_that_is_joined_already_is_its_last_use(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root" + pm.gen("first")
        branches = s.fork(2)
        branches += "a" + pm.gen("x") + "b" + pm.gen("y")
        branches.join()
        for expected in (1, 2, 2):
            backend.wait_for(expected)
            backend.release()

    program.run()
    requests = [r for r in backend.requests if isinstance(r, GenerateRequest)]
    assert [r.hints.last_use for r in requests] == [False, False, False, True, True]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_race_never_cancels_its_winner_but_what_losers_forked(scripted: Scripted, is_async: bool) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    async def program(s: pm.State) -> str:
        s += "a"
        branches = s.fork(2)
        below = branches[1].fork(1)[0]
        below += "slow" + pm.gen("z")
        branches[1] += "slow" + pm.gen("y")
        branches[0] += "fast" + pm.gen("x")
        await asyncio.to_thread(backend.wait_for, 3)
        _release_one(backend, "afast")
        winner = await pm.arace(branches)
        assert winner is branches[0]
        winner += " more"
        return str(await winner.get("x"))

    state = asyncio.run(program.arun()) if is_async else program.run()
    assert state.ret_value == "x"
    assert len(backend.cancelled) == 2


def _release_one(backend: ScriptedBackend, prompt: str) -> None:
    """Answer the held request of that prompt."""
    request, deliver = next(v for v in backend._held.values() if backend.decode(v[0].token_ids) == prompt)
    del backend._held[request.request_id]
    deliver(backend._answer(request))


# -- whoever reads or waits --------------------------------------------------------------------------------------------


def test_whoever_comes_late_to_a_text_misses_nothing(scripted: Scripted) -> None:
    class Halting(ScriptedBackend):
        """Sends the first half of a reply and keeps the rest."""

        def submit(self, request: Any, deliver: Any) -> None:
            *most, last = self._answer(request)
            deliver(most)
            self.rest = (deliver, last)

    backend = Halting(lambda prompt: "abcdefgh")

    @pm.function
    def program(s: pm.State) -> None:
        s += "start " + pm.gen("x")

    state = program.run(stream=True, backend=backend)
    assert next(state.stream("x")) == "abcd"
    pieces = state.text_iter()
    assert next(pieces).startswith("start abcd")
    deliver, last = backend.rest
    deliver([last])
    rest = "".join(pieces)
    assert state.text() == "start abcdefgh"
    assert ("start abcd" + rest).endswith("efgh") or rest == ""


def test_a_body_may_iterate_over_its_own_text(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> tuple[str, str]:
        s += "a" + pm.gen("x")
        before = "".join(s.text_iter())
        branch = s.fork(1)[0]
        branch += "b" + pm.gen("y")
        return before, "".join(branch.text_iter())

    before, branch = program.run().ret_value
    assert (before, branch) == ("a r1", "a r1b r5")


def test_an_observer_in_a_coroutine_is_told_not_to_block(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x")

    async def main() -> str:
        state = program.run(stream=True)
        backend.wait_for(1)
        blocking: list[Callable[[], object]] = [
            lambda: state["x"],
            lambda: state["never"],
            lambda: list(state.stream("x")),
            lambda: list(state.text_iter()),
            state.text,
        ]
        for read in blocking:
            with pytest.raises(pm.BlockingRead, match=r"await|async for"):
                read()
        backend.release()
        return str(await state.get("x"))

    assert asyncio.run(main()) == "x"


def test_an_observer_waiting_for_a_name_is_told_what_the_body_died_of(backend: ScriptedBackend) -> None:
    go = threading.Event()

    @pm.function
    def program(s: pm.State) -> None:
        go.wait(10)
        raise LookupError("mine")

    state = program.run(stream=True)
    threading.Timer(0.05, go.set).start()
    with pytest.raises(LookupError, match="mine"):
        state["x"]
    with pytest.raises(LookupError, match="mine"):  # also when it is over already
        state["y"]


def test_a_reader_that_leaves_a_streaming_program_ends_it(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x")

    pieces = program.stream()
    assert next(pieces) == "a"
    backend.wait_for(1)
    pieces.close()  # type: ignore[attr-defined]
    eventually(lambda: len(backend.cancelled) == 1)


def test_a_reader_whose_loop_is_gone_does_not_fail_the_hole(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x")

    state = program.run(stream=True)

    async def leave() -> None:
        reader = asyncio.ensure_future(anext(aiter(state.astream("x"))))
        waiter = asyncio.ensure_future(state.get("x"))
        await asyncio.sleep(0.05)
        reader.cancel()
        waiter.cancel()

    asyncio.run(leave())
    backend.wait_for(1)
    backend.release()
    assert state["x"] == "x"


def test_a_text_is_at_hand_as_soon_as_its_last_hole_is_filled(backend: ScriptedBackend) -> None:
    @pm.function
    async def program(s: pm.State) -> str:
        s += "a" + pm.gen("x")
        await s.get("x")
        return s.text()

    async def main() -> set[str]:
        return {(await program.arun()).ret_value for _ in range(200)}

    assert asyncio.run(main()) == {"a r1"}


# -- interrupts and budgets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_one_coroutine_body_leaves_the_other_programs_alone(
    backend: ScriptedBackend, error: type[BaseException]
) -> None:
    @pm.function
    async def interrupted(s: pm.State) -> None:
        raise error

    @pm.function
    async def calm(s: pm.State) -> None:
        s += "a" + pm.gen("x")

    with pytest.raises(error):
        interrupted.run()
    assert calm.run()["x"] == " r1"


def test_an_interrupt_in_one_body_of_a_batch_aborts_the_others(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State, i: int) -> None:
        if i == 0:
            backend.wait_for(3)
            raise KeyboardInterrupt
        s += f"{i}" + pm.gen("x")
        s["x"]

    with pytest.raises(KeyboardInterrupt):
        program.run_batch([(i,) for i in range(4)], num_threads=4)
    eventually(lambda: len(backend.cancelled) == 3)


def test_leaving_a_batch_early_aborts_what_still_runs(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State, i: int) -> int:
        if i:
            s += f"{i}" + pm.gen("x")
            s["x"]
        return i

    states = program.run_batch([(i,) for i in range(40)], num_threads=3, generator_style=True)
    assert next(states).ret_value == 0
    backend.wait_for(3)
    states.close()  # type: ignore[attr-defined]
    eventually(lambda: len(backend.cancelled) == 3)


def test_a_body_that_ends_cancelled_by_itself_is_one_failed_item(backend: ScriptedBackend) -> None:
    @pm.function
    async def program(s: pm.State, i: int) -> int:
        if i == 1:
            task = asyncio.ensure_future(asyncio.sleep(10))
            task.cancel()
            await task
        return i

    values = program.map(range(3), on_error="return")
    assert values[::2] == [0, 2]
    assert isinstance(values[1], pm.Cancelled)


def test_an_item_whose_arguments_do_not_fit_is_one_failed_item(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, q: str) -> None:
        s += q + pm.gen("x")

    states = program.run_batch([{"q": "a"}, {"wrong": "b"}, {"q": "c"}])
    assert [state.error() is None for state in states] == [True, False, True]
    assert isinstance(states[1].error(), TypeError)


def test_options_of_a_lazy_batch_are_those_of_its_call(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, i: int) -> None:
        s += f"{i}" + pm.gen("x")

    with pm.options(temperature=0.25):
        states = program.run_batch([(1,), (2,)], generator_style=True)
    list(states)
    requests = [r for r in backend.requests if isinstance(r, GenerateRequest)]
    assert [r.params.temperature for r in requests] == [0.25, 0.25]
    with pytest.raises(pm.InvalidOption):
        program.run_batch([(1,)], generator_style=True, temprature=1)


def test_a_batch_inside_a_body_on_a_worker_adds_no_thread(backend: ScriptedBackend) -> None:
    names: set[str] = set()
    lock = threading.Lock()

    @pm.function
    def inner(s: pm.State, i: int) -> int:
        with lock:
            names.add(threading.current_thread().name)
        return i

    @pm.function
    def outer(s: pm.State, i: int) -> int:
        return sum(inner.map(range(5)))

    assert outer.map(range(8), num_threads=3) == [10] * 8
    assert len(names) <= 3


def test_plain_bodies_under_amap_share_a_bounded_pool(backend: ScriptedBackend) -> None:
    names: set[str] = set()

    @pm.function
    def program(s: pm.State, i: int) -> str:
        names.add(threading.current_thread().name)
        s += f"{i}" + pm.gen("x")
        return str(s["x"])

    values = asyncio.run(program.amap(range(100), num_threads=4))
    assert len(values) == 100
    assert len(names) <= 4


def test_a_budget_that_cannot_give_each_sample_a_token_is_used_up(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x", n=4)

    with pytest.raises(pm.BudgetExceeded):
        program.run(budget=pm.Budget(tokens=3))
    assert backend.requests == []


def test_a_budget_of_seconds_is_named_even_where_the_body_goes_on_appending(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x")
        backend.wait_for(1)
        eventually(lambda: len(backend.cancelled) == 1)
        s += "b" + pm.gen("y")
        s["y"]

    with pytest.raises(pm.BudgetExceeded):
        program.run(budget=pm.Budget(seconds=0.05))


def test_a_runs_timeout_holds_for_choices_too(scripted: Scripted) -> None:
    scripted(lambda prompt: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.select("x", ["b", "c"])

    with pytest.raises(pm.HoleTimeout, match="hole 'x'"):
        program.run(timeout=0.05)


# -- seams -------------------------------------------------------------------------------------------------------------


class WithBeginning(ScriptedBackend):
    """A model that wants one token before the first text."""

    def begin_ids(self) -> tuple[int, ...]:
        return (256,)


def test_branches_that_began_from_nothing_bring_one_beginning() -> None:
    backend = WithBeginning(lambda prompt: "x")

    @pm.function
    def program(s: pm.State) -> None:
        branches = s.fork(3)
        branches += ["a", "b", "c"]
        branches.join("concate_and_append")
        s += "d" + pm.gen("x")

    program.run(backend=backend)
    request = backend.requests[0]
    assert isinstance(request, GenerateRequest)
    assert request.token_ids == (256, *b"abcd")


def test_positions_in_with_blocks_are_the_authors(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        with s.user():
            s += "a"
        with s.var_scope("x"):
            s += "b"

    positions = [node.source for node in program.trace().nodes]
    assert all(position is not None and position.file == __file__ for position in positions)


def test_a_decision_inside_a_fork_block_is_what_stops_the_trace() -> None:
    @pm.function
    def program(s: pm.State, flag: str) -> None:
        s += "a"
        with s.fork(2) as branches:
            branches += pm.gen("x")
            if flag == "yes":
                branches += "more"

    stopped = program.trace().stopped
    assert stopped is not None
    assert "argument 'flag'" in stopped.reason


@pytest.fixture(autouse=True)
def no_thread_is_left_waiting() -> Iterator[None]:
    """Every body that a test started has ended."""
    before = {t for t in threading.enumerate() if t.name.startswith("palmette-body")}
    yield
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("palmette-body") and t not in before])


# -- options and records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"n": True}, {"stop": 5}, {"stop_token_ids": 0.5}, {"min_tokens": 9, "max_tokens": 3}], ids=str
)
def test_an_option_that_cannot_be_right_fails_on_its_line(bad: dict[str, Any]) -> None:
    with pytest.raises(pm.InvalidOption):
        pm.gen("x", **bad)


def test_a_choice_rule_that_cannot_decide_fails_on_its_line() -> None:
    with pytest.raises(pm.InvalidOption, match="choices_method"):
        pm.select("x", ["a"], choices_method="greedy")  # type: ignore[arg-type]


def test_a_record_replays_a_program_whose_parameters_are_called_like_options(
    scripted: Scripted, tmp_path: Path
) -> None:
    backend = scripted(lambda prompt: f"reply to {prompt}")

    @pm.function
    def program(s: pm.State, seed: int, roles: str, backend: str = "") -> None:
        s += f"{seed} {roles}" + pm.gen("x")

    with pm.options(max_tokens=50):
        program.run(seed=3, roles="mine", record=str(tmp_path / "run.json"), budget=pm.Budget(tokens=7))
    recorded = read_record(tmp_path / "run.json")
    assert replay(recorded, program, backend)["holes"] == recorded["holes"]
    assert recorded["holes"][0]["text"] == "reply t"
