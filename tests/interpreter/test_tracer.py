"""Tracing: a body becomes data without a model, up to the first decision that only a run can take."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import palmette as pm
from palmette.interpreter.tracer import Symbol, Trace
from palmette.ir import (
    Argument,
    Checkpoint,
    ExprList,
    Fork,
    Gen,
    HoleOptions,
    HostStep,
    Join,
    Node,
    RoleBegin,
    RoleEnd,
    Rollback,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVariable,
    SourcePos,
    Text,
    Variable,
    dumps,
    loads,
)
from palmette.testing import ScriptedBackend

Body = Callable[..., Any]


def traced(body: Body, *args: Any, **kwargs: Any) -> Trace:
    trace = pm.function(body).trace(*args, **kwargs)
    trace.verify()
    if not any(isinstance(node, HostStep) for _, _, node in trace.graph.nodes()):
        rules = [pm.token_length_normalized]
        assert loads(dumps(trace.graph), rules=rules) == trace.graph
    return trace


def line_of(body: Body, marker: str) -> int:
    """The number of the line of a function that holds a marker."""
    lines, start = inspect.getsourcelines(body)
    return start + next(i for i, line in enumerate(lines) if marker in line)


def stop_of(trace: Trace) -> tuple[str, int]:
    assert trace.stopped is not None
    assert isinstance(trace.stopped.source, SourcePos)
    assert trace.stopped.source.file == __file__
    return trace.stopped.reason, trace.stopped.source.line


# -- text ----------------------------------------------------------------------------------------------------------


def test_constants_arguments_and_holes_become_nodes_in_order() -> None:
    def qa(s: pm.State, question: str) -> None:
        s += "Q: " + question + "\nA:" + pm.gen("answer", max_tokens=8)
        s += " So " + s["answer"]

    trace = traced(qa)
    assert trace.nodes == (
        Text("Q: "),
        Argument("question"),
        Text("\nA:"),
        Gen("answer", HoleOptions.of(max_tokens=8)),
        Text(" So "),
        Variable("answer"),
    )
    assert trace.stopped is None
    assert trace.graph.parameters == ("question",)


def test_arguments_that_are_given_are_constants() -> None:
    def qa(s: pm.State, a: str, b: str, c: str = "!") -> None:
        s += f"{a}{b}{c}"

    assert traced(qa, b="B").nodes == (Argument("a"), Text("B!"))
    assert traced(qa, "A", "B").nodes == (Text("AB!"),)
    assert pm.function(qa).bind(a="A").trace().nodes == (Text("A"), Argument("b"), Text("!"))


def test_marks_survive_every_way_of_building_text_without_looking() -> None:
    def build(s: pm.State, x: str) -> None:
        s += f"<{x}>" + "{}".format(x) + "%s" % x + str(x) + "".join(["(", x, ")"]) + ("[" + x)  # noqa: UP031, UP032

    parts = [node.text if isinstance(node, Text) else "x" for node in traced(build).nodes]
    assert "".join(parts) == "<x>xxx(x)[x"


def test_symbols_concatenate_with_expressions_on_either_side() -> None:
    def body(s: pm.State, x: str) -> None:
        s += x + pm.gen("a")
        s += pm.gen("b") + x

    assert traced(body).nodes == (Argument("x"), Gen("a"), Gen("b"), Argument("x"))


def test_roles_are_traced_in_both_spellings() -> None:
    def chat(s: pm.State, x: str) -> None:
        s += pm.system("be brief")
        with s.user():
            s += x
        s.assistant(pm.gen("reply"))

    assert traced(chat).nodes == (
        *(RoleBegin("system"), Text("be brief"), RoleEnd("system")),
        *(RoleBegin("user"), Argument("x"), RoleEnd("user")),
        *(RoleBegin("assistant"), Gen("reply"), RoleEnd("assistant")),
    )


def test_variables_and_scopes_are_traced() -> None:
    def body(s: pm.State, x: str) -> None:
        s["fixed"] = {"a": [1]}
        s["open"] = f"pre {x}"
        with s.var_scope("part"):
            s += "a" + pm.gen("y")
        s += s["part"] + s["open"]
        assert s["fixed"] == {"a": [1]}

    assert traced(body).nodes == (
        SetVariable("fixed", {"a": [1]}),
        SetVariable("open", ExprList((Text("pre "), Argument("x")))),
        *(ScopeBegin("part"), Text("a"), Gen("y"), ScopeEnd("part")),
        *(Variable("part"), Text("pre "), Argument("x")),
    )


def test_values_of_holes_asked_for_at_once_are_symbols() -> None:
    def body(s: pm.State) -> None:
        s += "I say " + s.gen("x")
        assert "x" in s
        assert "y" not in s

    assert traced(body).nodes == (Gen("x"), Text("I say "), Variable("x"))


# -- branches ------------------------------------------------------------------------------------------------------


def test_forks_and_joins_are_traced_with_the_names_they_bring() -> None:
    def body(s: pm.State) -> None:
        s += pm.gen("topic")
        with s.fork(2) as branches:
            for i, branch in enumerate(branches):
                branch += f"{i}: " + s["topic"] + pm.gen("point")
        s += s["point"]

    trace = traced(body)
    assert trace.nodes == (Gen("topic"), Fork(0, 2), Join(0, names=("point",)), Variable("point"))
    for i in range(2):
        assert trace.graph.streams[0, i] == (Text(f"{i}: "), Variable("topic"), Gen("point"))


def test_nested_forks_name_their_streams_by_path() -> None:
    def body(s: pm.State) -> None:
        outer = s.fork(1)
        for _ in range(2):
            inner = outer[0].fork(2)
            inner += pm.gen("x")
            inner.join("concate_and_append", on_error="collect")
        outer.join()

    streams = traced(body).graph.streams
    assert set(streams) == {(), (0, 0), *((0, 0, k, i) for k in range(2) for i in range(2))}
    assert streams[0, 0][-1] == Join(1, "concate_and_append", "collect")


def test_a_join_names_what_the_parent_does_not_have() -> None:
    def body(s: pm.State) -> None:
        s += pm.gen("old") + pm.gen("again")
        with s.fork(2) as branches:
            branches[1] += pm.gen("again") + pm.gen("new")

    assert traced(body).nodes[-1] == Join(0, names=("new",))


def test_a_copy_brings_its_variables_one_by_one() -> None:
    def body(s: pm.State) -> None:
        with s.copy() as c:
            c += pm.gen("x")
        s += s["x"]

    assert traced(body).nodes == (Fork(0, 1), Join(0, "copy", names=("x",)), Variable("x"))


def test_a_joined_branch_accepts_nothing_in_a_trace_either() -> None:
    def body(s: pm.State) -> None:
        branches = s.fork(1)
        branches.join()
        branches[0].__iadd__("late")

    with pytest.raises(pm.BranchEnded):
        pm.function(body).trace()


@pytest.mark.parametrize(
    ("options", "field"), [({"mode": "both"}, "mode"), ({"on_error": "ignore"}, "on_error")], ids=["mode", "policy"]
)
def test_an_unknown_way_to_join_is_refused_in_runs_and_traces(options: dict[str, Any], field: str) -> None:
    @pm.function
    def body(s: pm.State) -> None:
        s.fork(2).join(**options)

    for act in (body.trace, lambda: body.run(backend=ScriptedBackend())):
        with pytest.raises(pm.InvalidOption) as caught:
            act()
        assert caught.value.field == field


def test_branches_are_joined_once_in_runs_and_traces() -> None:
    @pm.function
    def body(s: pm.State) -> None:
        branches = s.fork(2)
        branches.join()
        branches.join()

    for act in (body.trace, lambda: body.run(backend=ScriptedBackend())):
        with pytest.raises(pm.BranchEnded, match="joined before"):
            act()


# -- checkpoints and host steps ------------------------------------------------------------------------------------


def test_a_rollback_restores_the_names_of_its_checkpoint() -> None:
    def body(s: pm.State) -> None:
        s += pm.gen("kept")
        here = s.checkpoint()
        s += pm.gen("gone")
        s.rollback(here)
        assert "gone" not in s
        s += s["kept"]

    trace = traced(body)
    assert trace.nodes == (Gen("kept"), Checkpoint(0), Gen("gone"), Rollback(0), Variable("kept"))


def test_reading_what_was_rolled_back_is_an_unknown_hole() -> None:
    def body(s: pm.State) -> None:
        here = s.checkpoint()
        s += pm.gen("gone")
        s.rollback(here)
        s += s["gone"]

    with pytest.raises(pm.UnknownHole):
        pm.function(body).trace()


def test_a_checkpoint_that_was_rolled_back_itself_is_refused() -> None:
    def body(s: pm.State) -> None:
        first = s.checkpoint()
        second = s.checkpoint()
        s.rollback(first)
        s.rollback(second)

    with pytest.raises(pm.ProgramError, match="rolled back itself"):
        pm.function(body).trace()


def test_a_retry_is_traced_up_to_its_condition_and_named() -> None:
    def body(s: pm.State) -> None:
        for _ in s.retry(until=is_number, attempts=3):  # here
            s += pm.gen("n")

    trace = traced(body)
    assert trace.nodes == (Checkpoint(0), Gen("n"), HostStep("is_number"))
    assert stop_of(trace) == ("is_number is a Python callable that decides in a run", line_of(body, "# here"))
    with pytest.raises(pm.UsageError, match="is_number is a Python callable"):
        dumps(trace.graph)


def is_number(s: pm.State) -> bool:
    number: str = s["n"]
    return number.isdigit()


def test_an_async_retry_is_a_host_step_too() -> None:
    async def body(s: pm.State) -> None:
        async for _ in s.retry(until=is_number):
            s += pm.gen("n")

    assert traced(body).nodes[-1] == HostStep("is_number")


def test_a_callable_for_branches_is_a_host_step() -> None:
    def point(i: int) -> Any:
        return f"{i}: " + pm.gen("x")

    def body(s: pm.State) -> None:
        branches = s.fork(2)
        branches += point  # here

    trace = traced(body)
    assert isinstance(trace.nodes[-1], HostStep)
    assert stop_of(trace)[1] == line_of(body, "# here")


# -- what only a run knows -----------------------------------------------------------------------------------------

DECISIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "equality": (lambda x: x == "a", "a comparison"),
    "reflected equality": (lambda x: "a" == x, "a comparison"),  # noqa: SIM300
    "order": (lambda x: x < "a", "a comparison"),
    "truth": (lambda x: "a" if x else "b", "a condition"),
    "length": (len, "a length"),
    "iteration": (list, "iteration"),
    "membership": (lambda x: "a" in x, "a search"),
    "membership of a list": (lambda x: x in ["a"], "a comparison"),
    "a set": (lambda x: x in {"a"}, "a lookup"),
    "a table": (lambda x: {"a": 1}[x], "a lookup"),
    "index": (lambda x: x[0], "an index or a slice"),
    "slice": (lambda x: x[1:], "an index or a slice"),
    "int": (int, "a conversion to a number"),
    "float": (float, "a conversion to a number"),
    "range": (range, "a conversion to a number"),
    "method": (lambda x: x.strip(), "str.strip"),
    "join": (lambda x: x.join(["a"]), "str.join"),
    "sum": (lambda x: x + 1, "arithmetic"),
    "reflected sum": (lambda x: 1 + x, "arithmetic"),
    "difference": (lambda x: 1 - x, "arithmetic"),
    "product": (lambda x: 2 * x, "arithmetic"),
    "format": (lambda x: f"{x:>4}", "format spec '>4'"),
    "repr": (lambda x: f"{x!r}", "repr"),
    "attribute": (lambda x: x.question, "attribute question"),
    "str of it": (lambda x: str(x) == "a", "a comparison"),
    "text of it": (lambda x: ("a" + x).isdigit(), "str.isdigit"),
    "hole name": (lambda x: pm.gen(x), "a field of Gen"),
    "regex": (lambda x: pm.gen("y", regex=f"({x})"), "a field of Gen"),
    "stop": (lambda x: pm.gen("y", stop=["a", f"{x}!"]), "a field of Gen"),
    "choices": (lambda x: pm.select("y", ["a", f"-{x}"]), "a field of Select"),
    "max_tokens": (lambda x: pm.gen("y", max_tokens=x), "a comparison"),
    "temperature": (lambda x: pm.gen("y", temperature=x), "repr"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_by_an_unknown_value_ends_the_trace_at_its_line(name: str) -> None:
    decide, reason = DECISIONS[name]

    def body(s: pm.State, x: Any) -> None:
        s += "before"
        s += decide(x)
        s += "behind"

    trace = traced(body)
    assert trace.nodes == (Text("before"),)
    assert stop_of(trace)[0].startswith(reason)


def test_a_decision_names_the_line_and_the_hole() -> None:
    def body(s: pm.State) -> None:
        s += pm.gen("mood")
        if s["mood"] == "good":  # here
            s += "!"

    assert stop_of(traced(body)) == ("a comparison depends on hole 'mood'", line_of(body, "# here"))


def test_open_roles_at_the_stop_are_no_breach() -> None:
    def body(s: pm.State, n: int) -> None:
        with s.user():
            for _ in range(n):
                s += "x"

    assert traced(body).nodes == (RoleBegin("user"),)


def test_the_size_of_a_fork_may_not_depend_on_a_run() -> None:
    def body(s: pm.State, n: int) -> None:
        s.fork(n)

    assert stop_of(traced(body))[0] == "the size of a fork depends on argument 'n'"


@pytest.mark.parametrize("read", ["text", "messages", "token_ids", "error"])
def test_the_text_of_a_trace_ends_it(read: str) -> None:
    def body(s: pm.State) -> None:
        s += "a" + pm.gen("x")
        s.sync()
        getattr(s, read)()
        s += "behind"

    trace = traced(body)
    assert trace.nodes == (Text("a"), Gen("x"))
    assert stop_of(trace)[0] == "text and results are known only in a run"


def test_the_value_of_a_hole_without_a_name_ends_the_trace() -> None:
    def body(s: pm.State) -> None:
        s += s.gen(max_tokens=2)

    assert "without a name" in stop_of(traced(body))[0]


def test_an_error_of_the_body_is_raised() -> None:
    def body(s: pm.State) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        pm.function(body).trace()


# -- async bodies and nested programs ------------------------------------------------------------------------------


def test_async_bodies_are_traced() -> None:
    async def body(s: pm.State, x: str) -> None:
        s += x + pm.gen("a")
        await asyncio.sleep(0)
        s += await s.get("a") + await s.agen("b")
        await s.wait()

    nodes: tuple[Node, ...] = (Argument("x"), Gen("a"), Gen("b"), Variable("a"), Variable("b"))
    assert traced(body).nodes == nodes

    async def on_a_loop() -> Trace:
        return traced(body)

    assert asyncio.run(on_a_loop()).nodes == nodes


@pm.function
def summary(s: pm.State, text: str) -> str:
    s += "Short: " + text + pm.gen("short", max_tokens=4)
    short: str = s["short"]
    return short


def test_programs_called_by_a_program_are_traced_into_calls() -> None:
    def body(s: pm.State, text: str) -> None:
        s += pm.gen("title")
        s += summary(text) + summary(s["title"])

    trace = traced(body)
    assert trace.nodes == (Gen("title"), Variable("short", (), (0,)), Variable("short", (), (1,)))
    first, second = trace.graph.calls
    assert first.name == "summary"
    hole = Gen("short", HoleOptions.of(max_tokens=4))
    assert first.streams[()] == (Text("Short: "), Argument("text", ()), hole)  # the caller's argument
    assert second.streams[()] == (Text("Short: "), Variable("title", (), ()), hole)


@pytest.mark.parametrize("how", ["run", "arun", "call"])
def test_a_program_run_inside_a_trace_is_traced_and_gives_a_state(how: str) -> None:
    async def body(s: pm.State) -> None:
        if how == "call":
            s += summary("abc", temperature=0)
        else:
            state = await summary.arun("abc") if how == "arun" else summary.run("abc", temperature=0)
            s += state["short"]

    trace = traced(body)
    assert trace.nodes == (Variable("short", (), (0,)),)


def test_a_program_that_writes_into_the_callers_state_is_part_of_it() -> None:
    def body(s: pm.State) -> None:
        summary(s, "abc")
        s += s["short"]

    trace = traced(body)
    assert trace.graph.calls == ()
    assert trace.nodes[-1] == Variable("short")


def test_a_call_that_stops_stops_the_caller_with_its_line() -> None:
    def inner(s: pm.State, n: int) -> None:
        for _ in range(n):  # here
            s += pm.gen("x")

    program = pm.function(inner)

    def body(s: pm.State, n: int) -> None:
        s += "a"
        program(n)
        s += "behind"

    trace = traced(body)
    assert trace.nodes == (Text("a"),)
    assert stop_of(trace) == ("a conversion to a number depends on argument 'n'", line_of(inner, "# here"))
    assert trace.graph.calls[0].stopped == trace.stopped


def test_a_batch_inside_a_trace_ends_it() -> None:
    def body(s: pm.State) -> None:
        s += "a"
        summary.map(["x", "y"])

    assert stop_of(traced(body))[0] == "a batch of summary exists only in a run"


def test_what_a_traced_body_returns_is_kept() -> None:
    trace = summary.trace()
    assert isinstance(trace.ret_value, Symbol)
    assert trace.ret_value.what == "hole 'short'"


def test_a_trace_needs_no_backend_and_leaves_no_trace() -> None:
    summary.trace()
    assert summary("a", backend=ScriptedBackend(["b"])) == "b"


# -- the constant prefix -------------------------------------------------------------------------------------------


def test_the_constant_prefix_ends_before_the_first_thing_that_differs() -> None:
    def body(s: pm.State, x: str) -> None:
        s += pm.system("rules") + "same " + pm.user(x)

    prefix = traced(body).constant_prefix()
    assert prefix == [RoleBegin("system"), Text("rules"), RoleEnd("system"), Text("same "), RoleBegin("user")]


def test_a_hole_or_a_choice_is_no_part_of_the_constant_prefix() -> None:
    def body(s: pm.State) -> None:
        s += "a" + pm.select("x", ["b", "c"]) + "d"

    trace = traced(body)
    assert isinstance(trace.nodes[1], Select)
    assert trace.constant_prefix() == [Text("a")]


def test_a_trace_prints() -> None:
    assert str(summary.trace()).splitlines() == [
        "program summary(text)",
        '  text "Short: "',
        "  arg text",
        "  gen short max_new_tokens=4",
    ]
