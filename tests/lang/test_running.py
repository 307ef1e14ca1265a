"""Running programs: once, many times, in coroutines, streaming, within budgets, under seeds."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import palmette as pm
from palmette.testing import ScriptedBackend
from palmette.types import GenerateRequest

Scripted = Callable[..., ScriptedBackend]


@pm.function
def simple(s: pm.State, q: str) -> None:
    s += q + pm.gen("x")


@pm.function
async def two_steps(s: pm.State, i: int) -> tuple[int, str]:
    s += f"{i}" + pm.gen("a")
    first = await s.get("a")
    s += ";" + pm.gen("b")
    return i, first + await s.get("b")


def requests(backend: ScriptedBackend) -> list[GenerateRequest]:
    return [r for r in backend.requests if isinstance(r, GenerateRequest)]


def release_each(backend: ScriptedBackend, count: int) -> None:
    """Answer `count` requests, one after the other as they come."""
    for _ in range(count):
        backend.wait_for(1)
        backend.release()


# -- once --------------------------------------------------------------------------------------------------------------


def test_a_call_returns_the_bodys_value_or_the_state(backend: ScriptedBackend) -> None:
    @pm.function
    def valued(s: pm.State) -> str:
        s += "q" + pm.gen("x")
        return str(s["x"]).strip()

    assert valued() == "r1"
    assert isinstance(simple("q"), pm.State)
    assert valued.run().ret_value == "r1"


def test_a_program_called_with_a_state_writes_into_it(backend: ScriptedBackend) -> None:
    @pm.function
    def outer(s: pm.State) -> None:
        s += "outer "
        simple(s, "inner")

    assert outer.run().text() == "outer inner r11"


def test_without_a_backend_the_error_says_how_to_set_one() -> None:
    with pytest.raises(pm.NoBackend, match="set_default_backend"):
        simple.run("q")


def test_a_body_needs_a_state_parameter() -> None:
    with pytest.raises(pm.UsageError, match="first parameter"):

        @pm.function
        def nothing() -> None: ...


def test_wrong_arguments_fail_before_anything_runs(backend: ScriptedBackend) -> None:
    with pytest.raises(TypeError, match=r"simple.*missing"):
        simple.run()
    with pytest.raises(pm.InvalidOption, match="qq"):
        simple.run(q="a", qq="b")
    with pytest.raises(pm.InvalidOption, match="temperature"):
        simple.run("a", temperature=-1)
    assert backend.requests == []


def test_run_options_reach_every_hole_and_holes_override_them(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x") + "b" + pm.gen("y", temperature=0.1, max_tokens=3)

    with pm.options(top_p=0.5, temperature=0.9):
        program.run(max_new_tokens=7, temperature=0.2)
    first, second = (r.params for r in requests(backend))
    assert (first.temperature, first.top_p, first.max_new_tokens) == (0.2, 0.5, 7)
    assert (second.temperature, second.top_p, second.max_new_tokens) == (0.1, 0.5, 3)
    program.run()
    assert requests(backend)[-2].params.temperature == 1.0


def test_options_hold_in_worker_threads_and_coroutines(backend: ScriptedBackend) -> None:
    with pm.options(temperature=0.3):
        simple.run_batch([("a",), ("b",)])
        two_steps.run_batch([(1,)])
    assert {r.params.temperature for r in requests(backend)} == {0.3}


def test_usage_adds_up_over_holes_and_branches(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "ab" + pm.gen("x")
        with s.fork(2) as branches:
            branches += "c" + pm.gen("y")

    usage = program.run().usage
    assert usage.sampled_tokens == len(" r2") + 2 * len(" r6")
    assert usage.prompt_tokens == 2 + 2 * 6


def test_meta_info_names_the_finish_and_counts_tokens(backend: ScriptedBackend) -> None:
    state = simple.run("q", max_new_tokens=2)
    info = state.get_meta_info("x")
    assert info["finish_reason"] == {"type": "length", "length": 2}
    assert (info["prompt_tokens"], info["completion_tokens"]) == (1, 2)
    stopped = simple.run("q", stop="1").get_meta_info("x")
    assert stopped["finish_reason"] == {"type": "stop", "matched": "1"}


def test_logprobs_come_with_the_hole(backend: ScriptedBackend) -> None:
    state = simple.run("q", return_logprob=True, return_text_in_logprobs=True)
    rows = state.get_meta_info("x")["output_token_logprobs"]
    assert [text for _, _, text in rows] == list(" r1")
    assert "output_token_logprobs" not in simple.run("q").get_meta_info("x")


# -- errors ------------------------------------------------------------------------------------------------------------


def test_an_error_names_hole_and_line_and_carries_the_state(scripted: Scripted) -> None:
    scripted({})
    with pytest.raises(pm.PalmetteError, match=r"hole 'x'.*test_running\.py:\d+") as caught:
        simple.run("q")
    assert caught.value.hole == "x"
    assert isinstance(caught.value.state, pm.State)


def test_a_body_that_raises_keeps_its_exception(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.gen("x")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        program.run()
    assert "program" in caught.value.__notes__[0]


def test_an_interrupt_in_the_body_cancels_what_is_in_flight(scripted: Scripted) -> None:
    backend = scripted(lambda p: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.gen("x")
        backend.wait_for(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.run()
    for _ in range(1000):
        if backend.cancelled:
            break
        time.sleep(0.005)
    assert len(backend.cancelled) == 1


def test_a_closed_backend_fails_what_waits_with_engine_died(scripted: Scripted) -> None:
    backend = scripted(lambda p: "x", manual=True)
    state = simple.run("q", stream=True)
    backend.wait_for(1)
    backend.close()
    with pytest.raises(pm.EngineDied):
        state["x"]
    assert isinstance(state.error(), pm.EngineDied)


@pytest.mark.parametrize("expr", [1, None, ["a"], object()])
def test_what_is_no_expression_cannot_be_appended(backend: ScriptedBackend, expr: Any) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += expr

    with pytest.raises(pm.UsageError, match="cannot append"):
        program.run()


# -- coroutines --------------------------------------------------------------------------------------------------------


def test_an_unfilled_read_on_an_event_loop_names_the_way_out(scripted: Scripted) -> None:
    backend = scripted(lambda p: " ok", manual=True)

    @pm.function
    async def program(s: pm.State) -> str:
        s += "q" + pm.gen("x")
        with pytest.raises(pm.BlockingRead, match=r'await s\.get\("x"\)'):
            s["x"]
        threading.Thread(target=release_each, args=(backend, 1)).start()
        await s.get("x")
        return str(s["x"])  # a filled one returns

    assert program.run().ret_value == " ok"


def test_running_a_program_on_an_event_loop_needs_its_async_twin(backend: ScriptedBackend) -> None:
    async def main() -> None:
        with pytest.raises(pm.BlockingRead, match="arun"):
            simple.run("q")
        with pytest.raises(pm.BlockingRead, match="amap"):
            simple.map(["q"])
        assert (await simple.arun("q"))["x"] == " r1"
        assert (await two_steps.arun(1)).ret_value == (1, " r1 r5")
        assert await two_steps.amap([(1,), (2,)]) == [(1, " r1 r5"), (2, " r1 r5")]

    asyncio.run(main())


def test_arun_runs_the_body_on_the_callers_loop(backend: ScriptedBackend) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @pm.function
    async def program(s: pm.State) -> None:
        loops.append(asyncio.get_running_loop())
        s += "q"
        assert await s.agen("x") == " r1"

    async def main() -> None:
        await program.arun()
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())
    program.run()
    assert loops[1] is not loops[0]


def test_a_nested_run_executes_on_its_own_thread(backend: ScriptedBackend) -> None:
    @pm.function
    def outer(s: pm.State, i: int) -> str:
        inner = simple.run(f"inner {i}")
        nested = simple.map([f"nested {i}"] * 3)
        s += "outer" + inner["x"] + nested[0]["x"] + pm.gen("y")
        return str(s["y"])

    assert outer.map(range(20), num_threads=2) == outer.map(range(20), num_threads=1)


# -- many --------------------------------------------------------------------------------------------------------------


def test_thousands_of_coroutines_in_flight(backend: ScriptedBackend) -> None:
    before = threading.active_count()
    values = two_steps.map(range(2000))
    assert [i for i, _ in values] == list(range(2000))
    assert threading.active_count() - before < 3


def test_plain_bodies_share_a_bounded_pool(backend: ScriptedBackend) -> None:
    most: list[int] = []
    before = threading.active_count()

    @pm.function
    def program(s: pm.State, i: int) -> int:
        most.append(threading.active_count())
        s += f"{i}" + pm.gen("x")
        s["x"]
        return i

    assert program.map(range(300), num_threads=64) == list(range(300))
    assert max(most) - before <= 65


def test_generator_style_yields_in_order_and_can_be_left(backend: ScriptedBackend) -> None:
    states = simple.run_batch([{"q": f"{i}" * (i + 1)} for i in range(10)], generator_style=True)
    assert next(states)["x"] == " r1"
    assert next(states)["x"] == " r2"
    states.close()  # type: ignore[attr-defined]


def test_batch_items_may_be_dicts_tuples_lists_or_single_values(backend: ScriptedBackend) -> None:
    states = simple.run_batch([{"q": "a"}, ("b",), "c"])
    assert [s.text()[0] for s in states] == ["a", "b", "c"]
    assert simple.run_batch([]) == []


def test_a_progress_bar_changes_no_result(backend: ScriptedBackend, capsys: pytest.CaptureFixture[str]) -> None:
    states = simple.run_batch([("a",)] * 3, progress_bar=True)
    assert len(states) == 3
    assert "programs" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [0, -1, "many", True])
def test_num_threads_is_checked(backend: ScriptedBackend, bad: Any) -> None:
    with pytest.raises(pm.InvalidOption, match="num_threads"):
        simple.run_batch([("a",)], num_threads=bad)


# -- streaming ---------------------------------------------------------------------------------------------------------


def test_a_hole_streams_in_pieces_that_add_up(scripted: Scripted) -> None:
    scripted(lambda p: " a reply of some length", piece=5)
    state = simple.run("q", stream=True)
    pieces = list(state.text_iter("x"))
    assert len(pieces) > 2
    assert "".join(pieces) == state["x"] == " a reply of some length"
    assert "".join(state.stream("x")) == state["x"]


def test_the_whole_text_streams_constants_included(scripted: Scripted) -> None:
    scripted(lambda p: " reply")

    @pm.function
    def program(s: pm.State, q: str) -> None:
        s += pm.user(q)
        s += pm.assistant(pm.gen("x"))

    text = program.run("hello").text()
    assert "".join(program.stream("hello")) == text

    async def collect() -> str:
        return "".join([piece async for piece in program.astream("hello")])

    assert asyncio.run(collect()) == text


def test_an_observer_reads_names_that_are_not_appended_yet(scripted: Scripted) -> None:
    backend = scripted(lambda p: " ok", manual=True)

    @pm.function
    def program(s: pm.State) -> str:
        s += "a" + pm.gen("x")
        s["x"]
        s += "b" + pm.gen("later")
        return "value"

    state = program.run(stream=True)
    threading.Thread(target=release_each, args=(backend, 2)).start()
    assert state["later"] == " ok"
    assert state.text() == "a okb ok"
    assert state.ret_value == "value"
    assert "later" in state


def test_a_name_that_never_comes_is_an_error_not_a_hang(backend: ScriptedBackend) -> None:
    state = simple.run("q", stream=True)
    with pytest.raises(pm.UnknownHole, match="'never'"):
        state["never"]


def test_a_body_error_reaches_whoever_streams(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a"
        raise LookupError("mine")

    state = program.run(stream=True)
    with pytest.raises(LookupError, match="mine"):
        list(state.text_iter())
    assert isinstance(state.error(), LookupError)


def test_text_async_iter_can_bring_meta_data(backend: ScriptedBackend) -> None:
    async def main() -> list[Any]:
        state = simple.run("q", stream=True)
        return [item async for item in state.text_async_iter("x", return_meta_data=True)]

    items = asyncio.run(main())
    assert "".join(piece for piece, _ in items) == " r1"


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_is_never_exceeded(scripted: Scripted) -> None:
    backend = scripted(lambda p: "x" * 50)

    @pm.function
    def program(s: pm.State) -> None:
        s += "root"
        branches = s.fork(4)
        branches += pm.gen("x", max_tokens=20)
        branches.join(on_error="collect")
        s["x"]

    state = program.run(budget=pm.Budget(tokens=50))
    assert state.usage.sampled_tokens <= 50
    errors = [v for v in state["x"] if isinstance(v, pm.BudgetExceeded)]
    assert len(errors) == 1
    assert sorted(r.params.max_new_tokens for r in requests(backend)) == [10, 20, 20]


def test_a_budget_of_calls_counts_samples(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x", n=2) + "b" + pm.gen("y") + "c" + pm.gen("z")

    with pytest.raises(pm.BudgetExceeded, match=r"calls.*hole 'z'"):
        program.run(budget=pm.Budget(calls=3))
    assert len(backend.requests) == 3


def test_a_budget_of_seconds_cancels_the_run(scripted: Scripted) -> None:
    backend = scripted(lambda p: "x", manual=True)
    with pytest.raises(pm.BudgetExceeded, match=r"0\.05 s"):
        simple.run("q", budget=pm.Budget(seconds=0.05))
    assert len(backend.cancelled) == 1


def test_a_hole_times_out_alone(scripted: Scripted) -> None:
    backend = scripted(lambda p: "x", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x", timeout=0.05)

    with pytest.raises(pm.HoleTimeout, match="hole 'x'"):
        program.run()
    assert len(backend.cancelled) == 1


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"seconds": -1}, {"calls": True}])
def test_a_budget_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(pm.InvalidOption):
        pm.Budget(**bad)


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_draw_keys_depend_on_seed_path_hole_and_sample_alone(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, text: str) -> None:
        s += text + pm.gen("a") + pm.gen("b", n=2)
        with s.fork(2) as branches:
            branches += pm.gen("c")

    def keys(**options: Any) -> list[int]:
        start = len(backend.requests)
        program.run(**options)
        return sorted(r.seed for r in requests(backend)[start:])

    first = keys(text="one", seed=5)
    assert len(set(first)) == 5
    assert keys(text="another", seed=5) == first
    assert keys(text="one", seed=6) != first
    assert keys(text="one") != keys(text="one")


def test_a_batch_under_one_seed_gives_each_instance_its_own(backend: ScriptedBackend) -> None:
    states = simple.run_batch([("q",)] * 3, seed=9)
    again = simple.run_batch([("q",)] * 3, seed=9)
    assert len({s.seed for s in states}) == 3
    assert [s.seed for s in states] == [s.seed for s in again]


def test_a_holes_own_seed_overrides_the_runs(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x", seed=3)

    program.run(seed=1)
    program.run(seed=2)
    one, two = requests(backend)
    assert one.seed == two.seed


def test_a_program_caches_its_constant_beginning(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, q: str) -> None:
        s += pm.system("constant")
        s += pm.user(q)
        s += pm.assistant(pm.gen("x"))

    program.cache()
    (request,) = requests(backend)
    assert request.params.max_new_tokens == 0
    assert backend.decode(request.token_ids) == "system\nconstant\nuser\n"
