"""Every rule of the IR, and that a breach names its line."""

from __future__ import annotations

from typing import Any

import pytest

from palmette.errors import VerificationError
from palmette.interpreter.choices import token_length_normalized
from palmette.ir import (
    Argument,
    Checkpoint,
    Constraint,
    ExprList,
    Fork,
    Gen,
    Graph,
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
    Stop,
    Text,
    Tool,
    Variable,
    verify,
)

AT = SourcePos("poem.py", 7)
Streams = dict[tuple[int, ...], tuple[Node, ...]]


def problems(streams: Streams, **rest: Any) -> list[str]:
    options = {key: rest.pop(key) for key in ("tools", "partial") if key in rest}
    with pytest.raises(VerificationError) as caught:
        verify(Graph("poem", rest.pop("parameters", ()), streams, **rest), **options)
    return caught.value.problems


BREACHES: dict[str, tuple[tuple[Node, ...], str]] = {
    "role in role": ((RoleBegin("user"), RoleBegin("system", AT), RoleEnd("system")), "'system' begins inside role"),
    "role not open": ((RoleEnd("user", AT),), "role 'user' ends, but no role is open"),
    "wrong role": ((RoleBegin("user"), RoleEnd("system", AT)), "role 'system' ends, but 'user' is open"),
    "open role": ((RoleBegin("user", AT),), "ends inside role 'user', began in None"),
    "open scope": ((ScopeBegin("v", AT),), "scope 'v' of stream () never ends"),
    "scope not open": ((ScopeEnd("v", AT),), "scope 'v' ends without having begun last"),
    "scopes cross": (
        (ScopeBegin("v"), ScopeBegin("w"), ScopeEnd("v", AT), ScopeEnd("v")),
        "scope 'v' ends without having begun last",
    ),
    "argument": ((Argument("a", source=AT),), "argument 'a' is no parameter of poem"),
    "read": ((Variable("x", source=AT), Gen("x")), "'x' is read before anything defines it"),
    "read in a variable": (
        (SetVariable("y", ExprList((Text("a"), Variable("x"))), AT),),
        "'x' is read before anything defines it",
    ),
    "read of another call": ((Variable("x", (), (4,), AT),), "'x' belongs to no program that was called"),
    "read of what was rolled back": (
        (Checkpoint(0), Gen("x"), Rollback(0), Variable("x", source=AT)),
        "'x' is read before anything defines it",
    ),
    "fork twice": ((Fork(0, 1), Fork(0, 1, AT)), "fork 0 of size 1 is repeated or empty"),
    "empty fork": ((Fork(0, 0, AT),), "fork 0 of size 0 is repeated or empty"),
    "join without fork": ((Join(0, source=AT),), "join 0 matches no open fork"),
    "join twice": ((Fork(0, 1), Join(0), Join(0, source=AT)), "join 0 matches no open fork"),
    "rollback": ((Rollback(0, AT), Checkpoint(0)), "rollback to checkpoint 0, which was not made before"),
    "type": ((Gen("x", constraint=Constraint("type", None), source=AT),), "the type of a hole resolves to nothing"),
    "choices": ((Select("x", (), token_length_normalized, source=AT),), "select without choices"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_named_with_its_line(breach: str) -> None:
    nodes, expected = BREACHES[breach]
    (problem,) = problems({(): nodes})
    assert expected in problem
    assert problem.endswith("[poem.py:7]")


def test_a_tool_that_resolves_to_nothing_is_named_only_where_tools_are_known() -> None:
    streams: Streams = {(): (Tool("search", "{}", AT),)}
    verify(Graph("poem", (), streams))
    verify(Graph("poem", (), streams), tools=["search"])
    assert problems(streams, tools=[]) == ["tool 'search' resolves to nothing [poem.py:7]"]


def test_a_stream_without_its_fork_is_named() -> None:
    assert problems({(): (), (0, 0): (Text("a", AT),)}) == ["stream (0, 0) belongs to no fork [poem.py:7]"]


def test_all_breaches_are_told_at_once_those_of_called_programs_too() -> None:
    called = Graph("inner", (), {(): (Argument("a"),)})
    found = problems({(): (RoleEnd("user"), Variable("x"))}, calls=(called,))
    assert len(found) == 3
    assert "no parameter of inner" in found[2]


def test_a_branch_inherits_names_and_role_and_may_not_end_in_another() -> None:
    fine: Streams = {
        (): (Gen("x"), RoleBegin("user"), Fork(0, 2), RoleEnd("user")),
        (0, 0): (Variable("x", ()),),
        (0, 1): (RoleEnd("user"), RoleBegin("user")),
    }
    verify(Graph("poem", (), fine))
    bad = {**fine, (0, 1): (RoleEnd("user"), RoleBegin("system", AT))}
    assert problems(bad) == ["stream (0, 1) ends inside role 'system', began in 'user' [poem.py:7]"]


def test_what_a_join_brings_is_defined_behind_it() -> None:
    branches: Streams = {(0, 0): (Gen("x"),), (0, 1): (Gen("x"),)}
    verify(Graph("poem", (), {(): (Fork(0, 2), Join(0, names=("x",)), Variable("x")), **branches}))
    assert len(problems({(): (Fork(0, 2), Variable("x"), Join(0, names=("x",))), **branches})) == 1


def test_reasoning_defines_a_second_name() -> None:
    verify(Graph("poem", (), {(): (Gen("x", reasoning="qwen3"), Variable("x_reasoning_content"))}))


def test_a_rollback_goes_back_to_the_role_and_scopes_of_its_checkpoint() -> None:
    nodes = (Checkpoint(0), RoleBegin("user"), ScopeBegin("v"), Rollback(0), RoleBegin("user"), RoleEnd("user"))
    verify(Graph("poem", (), {(): nodes}))


def test_a_graph_that_stopped_may_end_with_open_roles_and_scopes() -> None:
    streams: Streams = {(): (RoleBegin("user"), ScopeBegin("v"))}
    verify(Graph("poem", (), streams, stopped=Stop("a comparison")))
    verify(Graph("poem", (), streams), partial=True)
    assert len(problems(streams, partial=False, stopped=Stop("a comparison"))) == 2


def test_reads_across_calls_look_in_the_program_they_name() -> None:
    called = Graph("inner", ("q",), {(): (Argument("p", ()), Argument("q"), Gen("a"))})
    verify(Graph("poem", ("p",), {(): (Variable("a", (), (0,)),)}, calls=(called,)))
    assert len(problems({(): (Variable("b", (), (0,)),)}, parameters=("p",), calls=(called,))) == 1
