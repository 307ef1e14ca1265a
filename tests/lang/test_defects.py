"""One test for each defect of today's systems that the design names, in this version's scope."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import palmette as pm
from palmette.ir import Gen
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.testing import ScriptedBackend
from palmette.types import GenerateRequest

Scripted = Callable[..., ScriptedBackend]


def test_a_failed_operation_does_not_hang_what_waits(scripted: Scripted) -> None:
    scripted({"one:": " 1"})

    @pm.function
    def program(s: pm.State) -> None:
        s += "one:" + pm.gen("a") + "two:" + pm.gen("b") + "three:" + pm.gen("c")

    start = time.monotonic()
    with pytest.raises(pm.PalmetteError) as caught:
        program.run()
    state: pm.State = caught.value.state
    assert state["a"] == " 1"
    for name in ("b", "c"):
        with pytest.raises(pm.PalmetteError, match="no reply"):
            state[name]
    assert time.monotonic() - start < 5


def test_errors_do_not_become_a_later_key_error(scripted: Scripted) -> None:
    scripted({})

    @pm.function
    def program(s: pm.State) -> None:
        s += "x:" + pm.gen("x")

    with pytest.raises(pm.PalmetteError, match=r"no reply.*hole 'x'.*test_defects\.py") as caught:
        program.run()
    assert not isinstance(caught.value, KeyError)
    with pytest.raises(pm.PalmetteError) as again:
        caught.value.state["x"]
    assert again.value is caught.value


def test_n_above_one_gives_a_list_and_goes_on_with_the_first(scripted: Scripted) -> None:
    scripted([" first", " second", " third", " end"])

    @pm.function
    def program(s: pm.State) -> None:
        s += "x:" + pm.gen("x", n=3) + ";" + pm.gen("y")

    state = program.run()
    assert state["x"] == [" first", " second", " third"]
    assert state.text() == "x: first; end"
    assert len(state.get_meta_info("x")["samples"]) == 3


def test_dtype_with_a_string_stop_is_no_type_error(scripted: Callable[..., ScriptedBackend]) -> None:
    backend = scripted(["42 apples"])
    expr = pm.gen("x", dtype=int, stop=";")
    assert isinstance(expr, Gen)
    assert expr.options.stop == (";",)

    @pm.function
    def program(s: pm.State) -> None:
        s += "x:" + expr

    assert program.run()["x"] == "42"
    (request,) = backend.requests
    assert isinstance(request, GenerateRequest)
    assert request.params.stop == (";", " ", "\n")


def test_the_callers_stop_list_does_not_grow(backend: ScriptedBackend) -> None:
    stop = ["\n"]

    @pm.function
    def program(s: pm.State) -> None:
        for i in range(3):
            s += "x:" + pm.gen(f"x{i}", stop=stop)

    program.run(stop=stop)
    assert stop == ["\n"]
    assert all(r.params.stop == ("\n",) for r in backend.requests if isinstance(r, GenerateRequest))


def test_reading_a_var_scope_inside_itself_raises_at_once(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        with s.var_scope("inner"):
            s += "a" + pm.gen("x")
            with pytest.raises(pm.UnknownHole, match="still open"):
                s["inner"]
        assert s["inner"] == "a" + s["x"]

    program.run()


def test_copy_keeps_variables_as_they_are(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "before"
        with s.copy() as c:
            c += " tried" + pm.gen("x")
        s += " after"

    state = program.run()
    assert state["x"] == " r12"
    assert state.text() == "before after"


def test_appending_text_to_all_branches_works(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "p"
        branches = s.fork(2)
        branches += "text"
        branches += [pm.gen("x"), pm.gen("x")]
        branches += lambda i: f" branch {i}"
        branches.join("concate_and_append")

    assert program.run().text() == "ptext r5 branch 0text r5 branch 1"


def test_appending_after_join_raises_instead_of_hanging(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        branches = s.fork(2)
        branches += "a" + pm.gen("x")
        branches.join()
        with pytest.raises(pm.BranchEnded, match=r"joined.*test_defects\.py"):
            branches[0] += "more"
        assert branches[0]["x"] == s["x"][0]

    program.run()


def test_bind_keeps_the_decorators_options(backend: ScriptedBackend) -> None:
    @pm.function(num_api_spec_tokens=64)
    def program(s: pm.State, a: str, b: str) -> None:
        s += a + b + pm.gen("x")

    bound = program.bind(a="A").bind(b="B")
    assert bound.num_api_spec_tokens == 64
    assert bound.run().text().startswith("AB")
    with pytest.raises(TypeError):
        program.bind(c="?")


def test_trace_survives_a_role_block() -> None:
    @pm.function
    def program(s: pm.State, q: str) -> None:
        with s.user():
            s += "Q: " + q
        with s.assistant():
            s += pm.gen("a")

    trace = program.trace()
    trace.verify()
    assert trace.stopped is None
    assert "arg q" in str(trace)


def test_parameters_may_be_called_like_options(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, n: int, stop: str, temperature: float, backend: str = "mine") -> str:
        s += f"{n} {stop} {temperature} {backend}" + pm.gen("x")
        return f"{n}{stop}{temperature}{backend}"

    with pm.options(temperature=0.25, stop="END"):
        state = program.run(n=3, stop="here", temperature=0.5)
    assert state.ret_value == "3here0.5mine"
    request = backend.requests[-1]
    assert isinstance(request, GenerateRequest)
    assert (request.params.temperature, request.params.stop) == (0.25, ("END",))
    assert program.map([{"n": 1, "stop": "a", "temperature": 2.0}]) == ["1a2.0mine"]


def test_run_batch_leaves_the_callers_dicts_alone(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State, q: str) -> None:
        s += q + pm.gen("x")

    items = [{"q": "a"}, {"q": "bb"}]
    program.run_batch(items, temperature=0)
    assert items == [{"q": "a"}, {"q": "bb"}]


def test_run_batch_runs_each_body_once(backend: ScriptedBackend) -> None:
    calls: list[str] = []

    @pm.function
    def program(s: pm.State, q: str) -> None:
        calls.append(q)
        s += "constant beginning " + q + pm.gen("x")

    program.run_batch([{"q": "a"}, {"q": "b"}, {"q": "c"}])
    assert sorted(calls) == ["a", "b", "c"]
    assert len(backend.requests) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_one_failing_instance_loses_nothing_of_the_others(backend: ScriptedBackend, is_async: bool) -> None:
    def body(s: pm.State, i: int) -> None:
        s += f"{i}:" + pm.gen("x")
        if i == 2:
            raise ValueError("two")

    async def abody(s: pm.State, i: int) -> None:
        body(s, i)

    program = pm.function(abody if is_async else body)
    states = program.run_batch([{"i": i} for i in range(5)])
    assert [s.text().partition(":")[0] for i, s in enumerate(states) if i != 2] == ["0", "1", "3", "4"]
    assert [type(s.error()).__name__ for s in states] == ["NoneType", "NoneType", "ValueError", "NoneType", "NoneType"]
    values = program.map(range(5), on_error="return")
    assert isinstance(values[2], ValueError)
    with pytest.raises(ValueError, match="two"):
        program.map(range(5))


def test_a_state_owns_no_thread(scripted: Scripted) -> None:
    backend = scripted(lambda prompt: " ok", manual=True)

    @pm.function
    def program(s: pm.State) -> None:
        s += "p"
        branches = s.fork(500)
        branches += pm.gen("x")
        backend.wait_for(500)
        counts.append(threading.active_count())
        backend.release()
        branches.join()

    counts = [threading.active_count()]
    state = program.run()
    assert len(state["x"]) == 500
    assert counts[1] - counts[0] <= 1  # the executor's own, if this is the first program of the process


def test_nothing_is_tokenized_twice(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    original = backend.encode

    def encode(pieces: Any) -> list[int]:
        encoded.append("".join(p.text for p in pieces))
        return original(pieces)

    monkeypatch.setattr(backend, "encode", encode)

    @pm.function
    def program(s: pm.State) -> None:
        s += "one" + pm.gen("a") + "two"
        branches = s.fork(2)
        branches += "three" + pm.gen("b")
        branches.join("concate_and_append")
        s += "four" + pm.gen("c")

    program.run()
    assert encoded == ["one", "two", "three", "three", "four"]


def test_fork_before_any_text(backend: ScriptedBackend) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        branches = s.fork(2)
        for i, branch in enumerate(branches):
            branch += f"{i}:" + pm.gen("x")
        branches.join()

    assert program.run()["x"] == [" r2", " r2"]


def test_selects_do_not_favour_long_or_predictable_choices(scripted: Scripted) -> None:
    # P(n) = 0.5, P(r | no) = 0.41, every other letter is certain: "no" is meant in 0.59 of the cases that begin so.
    scripted({}, score=lambda prompt, token: {"n": -0.6931, "r": -0.9}.get(token, 0.0))

    @pm.function
    def program(s: pm.State, rule: Any) -> None:
        s += "where? " + pm.select("x", ["no", "north"], choices_method=rule)

    assert program.run(rule=pm.token_length_normalized)["x"] == "north"  # SGLang's default: certain letters pay
    state = program.run(rule=pm.exact_probability)
    assert state["x"] == "no"
    assert state.get_meta_info("x")["probabilities"] == pytest.approx([0.593, 0.407], abs=0.001)


def test_no_chat_template_is_made_up() -> None:
    with pytest.raises(pm.NoChatTemplate, match="instruct"):
        ByteTokenizer(chat_template=None).chat_template.role_pieces([], "user")


@pytest.mark.parametrize(
    "hole",
    [
        pm.gen("x", regex="[0-9]+"),
        pm.gen("x", json_schema="{}"),
        pm.gen("x", grammar='root ::= "a"'),
        pm.gen("x", dtype=int),
        pm.gen("x", type=int),
        pm.gen(int),
        pm.gen("x", stop_regex="a"),
        pm.gen_int("x"),
        pm.gen_string("x"),
    ],
)
def test_constraints_are_never_silently_dropped(scripted: Callable[..., ScriptedBackend], hole: Any) -> None:
    backend = scripted(constraints=())

    @pm.function
    def program(s: pm.State) -> None:
        s += "x:" + hole

    with pytest.raises(pm.UnsupportedConstraint) as caught:
        program.run()
    assert caught.value.keyword in str(caught.value)
    assert backend.requests == []
