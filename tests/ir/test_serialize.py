"""Graphs to JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from palmette.errors import UsageError, VerificationError
from palmette.interpreter.choices import token_length_normalized
from palmette.ir import (
    Argument,
    Constraint,
    ExprList,
    Gen,
    Graph,
    HostStep,
    Node,
    Select,
    SetVariable,
    SourcePos,
    Stop,
    Text,
    Tool,
    UnboundType,
    Variable,
    describe,
    dumps,
    loads,
    to_text,
    verify,
)
from tests.ir.graphs import RULES, TYPES, graphs


def graph_of(*nodes: Node, **rest: Any) -> Graph:
    return Graph("program", rest.pop("parameters", ()), {(): nodes}, **rest)


@given(graphs())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_graph_comes_back_equal(graph: Graph) -> None:
    data = dumps(graph)
    back = loads(data, types=TYPES, rules=RULES)
    assert back == graph
    assert dumps(back) == data  # source positions too, which equality leaves out


@given(graphs())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_keeps_the_rules_verifies_and_prints_each_node_once(graph: Graph) -> None:
    verify(graph)
    text = to_text(graph)
    for program in (graph, *graph.calls):
        for _, _, node in program.nodes():
            assert describe(node) in text


def test_a_hole_of_an_unbound_type_keeps_its_schema() -> None:
    pytest.importorskip("pydantic")
    back = loads(dumps(graph_of(Gen("x", constraint=Constraint("type", list[int])))))
    (hole,) = back.streams[()]
    assert isinstance(hole, Gen)
    assert hole.constraint is not None
    unbound = hole.constraint.value
    assert isinstance(unbound, UnboundType)
    assert json.loads(unbound.schema) == {"type": "array", "items": {"type": "integer"}}
    assert loads(dumps(back)) == back
    assert loads(dumps(back), types={unbound.label: list[int]}) == graph_of(
        Gen("x", constraint=Constraint("type", list[int]))
    )


def test_a_tool_must_be_bound_and_is_never_imported() -> None:
    data = dumps(graph_of(Tool("os.system", "{}", SourcePos("shell.py", 3))))
    with pytest.raises(VerificationError, match=r"tool 'os.system' resolves to nothing \[shell.py:3\]"):
        loads(data)
    assert loads(data, tools={"os.system": print}).streams[()] == (Tool("os.system", "{}"),)


def test_a_choice_rule_must_be_bound_by_its_name() -> None:
    graph = graph_of(Select("x", ("a", "b"), token_length_normalized))
    with pytest.raises(VerificationError, match="rule 'token_length_normalized' resolves to nothing"):
        loads(dumps(graph))
    assert loads(dumps(graph), rules=RULES) == graph


def test_a_host_step_is_refused_with_its_name_and_line() -> None:
    with pytest.raises(UsageError, match=r"check is a Python callable \[judge.py:9\]"):
        dumps(graph_of(HostStep("check", SourcePos("judge.py", 9))))


@pytest.mark.parametrize("value", [object(), {1: "a"}, (1, 2), {"deep": [(1,)]}, float("nan"), {1, 2}])
def test_a_variable_that_json_would_change_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="cannot be serialized"):
        dumps(graph_of(SetVariable("x", value)))


def test_a_loaded_graph_is_verified() -> None:
    with pytest.raises(VerificationError, match="'x' is read before anything defines it"):
        loads(dumps(graph_of(Variable("x"))))


def test_variables_made_of_arguments_and_reads_across_calls_come_back() -> None:
    called = Graph("called", ("q",), {(): (Argument("q", None), Argument("p", ()), Gen("a"))})
    value = ExprList((Text("pre "), Argument("p")))
    graph = graph_of(SetVariable("k", value), Variable("a", (), (0,)), parameters=("p",), calls=(called,))
    assert loads(dumps(graph)) == graph


def test_a_stop_comes_back_with_its_place() -> None:
    back = loads(dumps(graph_of(stopped=Stop("a comparison", SourcePos("a.py", 4)))))
    assert str(back.stopped) == "a comparison [a.py:4]"


def broken(**changes: Any) -> str:
    node = {"node": "Fork", "index": 0, "size": 1, "source": None, **changes}
    raw = {"name": "p", "parameters": [], "streams": [[[], [node]]], "calls": [], "stopped": None}
    return json.dumps({"palmette_ir": 1, **raw})


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "{}",
        '{"palmette_ir": 2}',
        '{"palmette_ir": 1}',
        broken(node="HostStep"),
        broken(node="os.system"),
        broken(size="many"),
        broken(index=None),
        broken(extra=1),
        broken(source=["a.py"]),
        broken(source=5),
        broken(node=[]),
        "[" * 100_000,
    ],
)
def test_what_is_no_program_is_a_usage_error(data: str) -> None:
    with pytest.raises(UsageError):
        loads(data)


def test_an_option_out_of_range_does_not_load() -> None:
    data = json.loads(dumps(graph_of(Gen("x"))))
    data["streams"][0][1][0]["options"]["temperature"] = -1
    with pytest.raises(UsageError, match="temperature"):
        loads(json.dumps(data))
