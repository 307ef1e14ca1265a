"""Forks and joins, copies, checkpoints and retries, cancelling and racing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

import palmette as pm
from palmette.testing import ScriptedBackend
from palmette.types import BranchesEnded, ForkDeclared, GenerateRequest, ProgramEnded

Scripted = Callable[..., ScriptedBackend]


def echo(prompt: str) -> str:
    """The last word of the prompt; words that begin with `bad` have no reply."""
    word = prompt.split()[-1]
    if word.startswith("bad"):
        raise pm.RequestError(f"no reply to {word}")
    return f" <{word}>"


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the executor's loop has come as far as `condition`."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_gather_variable_makes_lists_and_drops_text(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        with s.fork(3) as branches:
            for i, branch in enumerate(branches):
                branch += f" b{i}" + pm.gen("x")
                branch["i"] = i
        s += " end"

    state = program.run()
    assert state["x"] == [" <b0>", " <b1>", " <b2>"]
    assert state["i"] == [0, 1, 2]
    assert state.text() == "root end"


def test_a_name_that_only_some_branches_have_is_none_for_the_others(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(2)
        branches[1] += " only" + pm.gen("x")
        branches.join()

    assert program.run()["x"] == [None, " <only>"]


def test_concatenation_follows_fork_order(scripted: Scripted) -> None:
    backend = scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(3)
        for i, branch in enumerate(branches):
            branch += f" b{i}" + pm.gen("x")
        branches.join("concate_and_append")
        s += " then" + pm.gen("y")

    state = program.run()
    assert state.text() == "root b0 <b0> b1 <b1> b2 <b2> then <then>"
    assert "x" not in state
    assert backend.decode(state.token_ids()) == state.text()


def test_forks_nest(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        with s.fork(2) as outer:
            for i, branch in enumerate(outer):
                branch += f" o{i}"
                with branch.fork(2) as inner:
                    for j, leaf in enumerate(inner):
                        leaf += f" i{i}{j}" + pm.gen("x")

    assert program.run()["x"] == [[" <i00>", " <i01>"], [" <i10>", " <i11>"]]


def test_variables_and_roles_are_inherited(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += pm.user("hello")
        with s.assistant():
            s += "one" + pm.gen("a")
            branches = s.fork(2)
            for branch in branches:
                assert branch["a"] == s["a"]
                branch += " two" + pm.gen("b")
            branches.join()
            s += " three"

    state = program.run()
    assert state.messages() == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "one <one> three"},
    ]


def test_a_branch_that_leaves_its_role_cannot_be_concatenated(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += pm.user_begin()
        branches = s.fork(2)
        branches[1] += "x" + pm.user_end()
        branches.join("concate_and_append")

    with pytest.raises(pm.BranchError, match="role") as caught:
        program.run()
    assert caught.value.index == 1


def test_a_thousand_branches_add_no_thread(backend: ScriptedBackend) -> None:
    threads: list[int] = []

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        threads.append(threading.active_count())
        branches = s.fork(1000)
        branches += lambda i: f"{i}" + pm.gen("x")
        threads.append(threading.active_count())
        branches.join()
        assert len(s["x"]) == 1000

    program.run()
    assert threads[0] == threads[1]


def test_a_fork_is_declared_with_its_tokens_and_ends_with_the_program(scripted: Scripted) -> None:
    backend = scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        with s.fork(3) as branches:
            branches[0] += " a" + pm.gen("x")
            branches[1] += " b" + pm.gen("x") + " more" + pm.gen("y")

    program.run()
    eventually(lambda: len(backend.program_events) == 3)
    declared, ended, over = backend.program_events
    assert isinstance(declared, ForkDeclared)
    assert (backend.decode(declared.token_ids), declared.siblings) == ("root", 3)
    assert isinstance(ended, BranchesEnded)
    assert ended.count == 1  # the third branch never asked for anything
    assert isinstance(over, ProgramEnded)
    hints = [r.hints for r in backend.requests if isinstance(r, GenerateRequest)]
    assert sorted((h.siblings, h.shared_len) for h in hints) == [(0, 0), (3, 4), (3, 4)]


@pytest.mark.parametrize("policy", ["all", "first_error"])
def test_a_failed_branch_raises_branch_error(scripted: Scripted, policy: str) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(3)
        for branch, word in zip(branches, ["a", "bad", "c"], strict=True):
            branch += f" {word}" + pm.gen("x")
        branches.join(on_error=policy)  # type: ignore[arg-type]

    with pytest.raises(pm.BranchError, match="branch 1 failed: no reply to bad") as caught:
        program.run()
    assert caught.value.index == 1
    assert isinstance(caught.value.cause, pm.RequestError)
    assert caught.value.state is not None


def test_first_error_cancels_the_other_branches(scripted: Scripted) -> None:
    backend = scripted(echo, manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(3)
        for branch, word in zip(branches, ["bad", "b", "c"], strict=True):
            branch += f" {word}" + pm.gen("x")
        branches.join(on_error="first_error")
        backend.wait_for(3)
        backend.release(1)

    with pytest.raises(pm.BranchError, match="branch 0"):
        program.run()
    assert len(backend.cancelled) == 2


def test_collect_hands_errors_out(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(2)
        for branch, word in zip(branches, ["bad", "good"], strict=True):
            branch += f" {word}" + pm.gen("x")
        branches.join(on_error="collect")

    failed, good = program.run()["x"]
    assert isinstance(failed, pm.RequestError)
    assert good == " <good>"


def test_an_error_that_the_program_read_does_not_fail_the_run(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> str:
        s += "root"
        branch = s.fork(1)[0]
        branch += " bad" + pm.gen("x")
        try:
            return str(branch["x"])
        except pm.RequestError:
            return "handled"

    assert program.run().ret_value == "handled"


@pytest.mark.parametrize("size", [0, -1, 10**6, True, "2"])
def test_an_impossible_fork_is_refused_at_once(backend: ScriptedBackend, size: int) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        s.fork(size)

    with pytest.raises(pm.InvalidOption, match=r"fork.*test_branches\.py"):
        program.run()


def test_a_wrong_number_of_expressions_is_refused(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        branches = s.fork(3)
        branches += ["a", "b"]

    with pytest.raises(pm.InvalidOption, match="2 expressions"):
        program.run()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_rollback_restores_text_names_and_tokens(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        s["kept"] = 1
        place = s.checkpoint()
        s += " a" + pm.gen("x")
        s["kept"] = 2
        assert s["x"] == " <a>"
        s.rollback(place)
        assert "x" not in s
        assert s["kept"] == 1
        s += " b" + pm.gen("y")

    state = program.run()
    assert state.text() == "root b <b>"
    assert state.usage.wasted_tokens == len(" <a>")


def test_rollback_interrupts_what_is_in_flight(scripted: Scripted) -> None:
    backend = scripted(echo, manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        place = s.checkpoint()
        s += " a" + pm.gen("x")
        backend.wait_for(1)
        s.rollback(place)
        s += " b" + pm.gen("y")
        eventually(lambda: len(backend.requests) == 2)  # before that the one held may be the first still
        backend.release()

    state = program.run()
    assert state.text() == "root b <b>"
    assert len(backend.cancelled) == 1


def test_rollback_undoes_an_error(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        place = s.checkpoint()
        s += " bad" + pm.gen("x")
        with pytest.raises(pm.RequestError):
            s["x"]
        s.rollback(place)
        s += " good" + pm.gen("x")

    assert program.run().text() == "root good <good>"


def test_retry_rewinds_and_draws_anew(scripted: Scripted) -> None:
    backend = scripted([" no", " no", " 42", " done"])

    @pm.function
    def program(s: pm.State) -> None:
        s += "number:"
        for _ in s.retry(until=lambda s: s["n"].strip().isdigit(), attempts=5):
            s += pm.gen("n")
        s += pm.gen("end")

    state = program.run(seed=1)
    assert state.text() == "number: 42 done"
    seeds = [r.seed for r in backend.requests if isinstance(r, GenerateRequest)]
    assert len(set(seeds)) == len(seeds)
    prompts = [r.token_ids for r in backend.requests[:3] if isinstance(r, GenerateRequest)]
    assert prompts[0] == prompts[1] == prompts[2]


def test_retry_gives_up_with_a_named_error(scripted: Scripted) -> None:
    scripted([" no"] * 3)

    @pm.function
    def program(s: pm.State) -> None:
        s += "number:"
        for _ in s.retry(until=lambda s: s["n"] == "yes", attempts=3):
            s += pm.gen("n")

    with pytest.raises(pm.RetryExhausted, match="3 attempts") as caught:
        program.run()
    assert caught.value.state is not None


def test_retry_works_in_a_coroutine(scripted: Scripted) -> None:
    scripted([" no", " yes"])

    @pm.function
    async def program(s: pm.State) -> None:
        s += "q:"
        async for _ in s.retry(until=lambda s: s["n"] == " yes", attempts=3):
            s += pm.gen("n")

    assert program.run().text() == "q: yes"


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_cancel_reaches_every_branch_below(scripted: Scripted) -> None:
    backend = scripted(echo, manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        outer = s.fork(2)
        leaves = [leaf for branch in outer for leaf in branch.fork(2)]
        for leaf in leaves:
            leaf += " x" + pm.gen("x")
        backend.wait_for(4)
        s.cancel()
        for leaf in leaves:
            with pytest.raises(pm.Cancelled):
                leaf["x"]
        with pytest.raises(pm.BranchEnded, match="cancelled"):
            s += "more"

    with pytest.raises(pm.Cancelled):
        program.run()
    assert len(backend.cancelled) == 4


@pytest.mark.parametrize("is_async", [False, True])
def test_race_returns_the_first_to_end_and_cancels_the_others(scripted: Scripted, is_async: bool) -> None:
    backend = scripted(echo, manual=True)

    def release_second() -> None:
        backend.wait_for(3)
        backend.cancel(backend.requests[0].request_id)

    @pm.function
    def program(s: pm.State) -> int:
        s += "root"
        branches = s.fork(3)
        branches += lambda i: f" b{i}" + pm.gen("x")
        threading.Thread(target=release_second).start()
        return list(branches).index(pm.race(list(branches)))

    @pm.function
    async def aprogram(s: pm.State) -> int:
        s += "root"
        branches = s.fork(3)
        branches += lambda i: f" b{i}" + pm.gen("x")
        threading.Thread(target=release_second).start()
        return list(branches).index(await pm.arace(list(branches)))

    state = (aprogram if is_async else program).run_batch([{}])[0]
    assert state.error() is None or isinstance(state.error(), pm.Cancelled)
    assert len(backend.cancelled) == 3


def test_first_passes_over_failures(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> str:
        s += "root"
        branches = s.fork(2)
        for branch, word in zip(branches, ["bad", "good"], strict=True):
            branch += f" {word}" + pm.gen("x")
        return str(pm.first(list(branches))["x"])

    assert program.run().ret_value == " <good>"


def test_first_raises_when_all_fail(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    async def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(2)
        branches += " bad" + pm.gen("x")
        await pm.afirst(list(branches))

    with pytest.raises(pm.RequestError, match="no reply to bad"):
        program.run()


def test_leaving_a_cancelled_task_aborts_its_program(scripted: Scripted) -> None:
    backend = scripted(echo, manual=True)

    @pm.function
    async def program(s: pm.State) -> None:
        s += "root" + pm.gen("x")
        await s.get("x")

    async def main() -> None:
        task = asyncio.ensure_future(program.arun())
        await asyncio.to_thread(backend.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    for _ in range(1000):
        if backend.cancelled:
            break
        threading.Event().wait(0.005)
    assert len(backend.cancelled) == 1


def test_a_name_the_parent_has_is_not_gathered(scripted: Scripted) -> None:
    scripted(echo)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root" + pm.gen("x")
        with s.fork(2) as branches:
            branches += " again" + pm.gen("x") + " new" + pm.gen("y")

    state = program.run()
    assert state["x"] == " <root>"
    assert state["y"] == [" <new>", " <new>"]
