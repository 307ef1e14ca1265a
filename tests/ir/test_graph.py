"""Nodes, expressions, edges and printing."""

from __future__ import annotations

import textwrap

import pytest

from palmette.errors import UsageError
from palmette.interpreter.choices import token_length_normalized
from palmette.ir import (
    Argument,
    Checkpoint,
    Constraint,
    Edge,
    Fork,
    Gen,
    Graph,
    HoleOptions,
    HostStep,
    Join,
    Media,
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
    author_position,
    defined_names,
    flatten,
    to_text,
)

HERE = SourcePos("a.py", 1)


def test_adding_builds_one_flat_sequence_in_order() -> None:
    expr = "a" + (Gen("x") + "b") + (Text("c") + Gen("y"))
    assert list(flatten(expr, HERE)) == [Text("a"), Gen("x"), Text("b"), Text("c"), Gen("y")]


def test_flattening_is_not_limited_by_the_recursion_of_python() -> None:
    expr = Text("a") + "b"
    for _ in range(5_000):
        expr = Text("a") + expr
    assert len(list(flatten(expr, HERE))) == 5_002


def test_what_is_no_expression_is_refused_with_its_type() -> None:
    with pytest.raises(UsageError, match=r"cannot append 5 \(int\)"):
        list(flatten(5, HERE))
    with pytest.raises(TypeError, match="cannot concatenate int"):
        Gen("x") + 5


def test_source_positions_are_the_authors_line_and_not_part_of_equality() -> None:
    position = author_position()
    assert position is not None
    assert position.file == __file__
    assert Text("a", position) == Text("a")


def test_nodes_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Text("a").text = "b"  # type: ignore[misc]


def test_defined_names() -> None:
    assert defined_names(Gen("x", reasoning="qwen3")) == ("x", "x_reasoning_content")
    assert defined_names(Gen()) == ()
    assert defined_names(Join(0, names=("a", "b"))) == ("a", "b")
    assert defined_names(ScopeEnd("v")) == ("v",)
    assert defined_names(ScopeBegin("v")) == ()
    assert defined_names(Tool("t", "{}")) == ()


def test_edges_lead_from_forks_over_branches_to_joins_and_from_holes_to_reads() -> None:
    graph = Graph(
        "p",
        (),
        {
            (): (Gen("x"), Gen("x"), Fork(0, 2), Join(0, names=("y",))),
            (0, 0): (Variable("x", ()), Gen("y")),
            (0, 1): (Text("a"), Variable("y", (0, 0))),
        },
    )
    assert set(graph.edges()) == {
        Edge("fork", ((), 2), ((0, 0), 0)),
        Edge("fork", ((), 2), ((0, 1), 0)),
        Edge("join", ((0, 0), 2), ((), 3)),
        Edge("join", ((0, 1), 2), ((), 3)),
        Edge("read", ((), 1), ((0, 0), 0)),  # the last node that defines x
        Edge("read", ((0, 0), 1), ((0, 1), 1)),
    }


def test_a_read_of_another_program_is_no_edge_of_this_one() -> None:
    graph = Graph("p", (), {(): (Fork(0, 1),), (0, 0): (Variable("x", (), (0,)),)}, (Graph("q", (), {(): ()}),))
    assert [edge.kind for edge in graph.edges()] == ["fork"]


def test_printing_shows_each_branch_below_its_fork_and_calls_behind() -> None:
    graph = Graph(
        "p",
        ("q",),
        {
            (): (Text('say "hi"\n'), Argument("q"), Fork(0, 2), Text("between"), Join(0, names=("x",)), Text("end")),
            (0, 0): (Gen("x", HoleOptions.of(max_tokens=4)), Fork(0, 1)),
            (0, 0, 0, 0): (Variable("x", (0, 0)),),
            (0, 1): (),
        },
        (Graph("inner", (), {(): (Variable("y", (), ()),)}),),
        Stop("a comparison", HERE),
    )
    assert to_text(graph) == textwrap.dedent("""\
        program p(q)
          text "say \\"hi\\"\\n"
          arg q
          fork 0 into 2
            branch 0:
              gen x max_new_tokens=4
              fork 0 into 1
                branch 0:
                  read x of stream 0.0
            branch 1:
          text "between"
          join 0 gather_variable -> x
          text "end"
          stopped: a comparison [a.py:1]

        program inner()
          read y of the traced program""")


def test_every_kind_of_node_prints_on_one_line() -> None:
    nodes = (
        Gen(None, constraint=Constraint("regex", "a\n")),
        Select("x", ("a", "b"), token_length_normalized),
        RoleBegin("user"),
        RoleEnd("user"),
        Media("image", "a.png"),
        Tool("t", "{}"),
        SetVariable("v", "two\nlines" * 20),
        ScopeBegin("w"),
        ScopeEnd("w"),
        Checkpoint(0),
        Rollback(0),
        HostStep("f"),
        Variable("v", (), (1, 0)),
    )
    lines = to_text(Graph("p", (), {(): nodes})).splitlines()
    assert len(lines) == 1 + len(nodes)
    assert max(map(len, lines)) < 100
    assert lines[-1] == "  read v of call 1.0"
