"""Hypothesis strategies for programs as data: anything that serializes, whether or not it verifies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from palmette.interpreter.choices import exact_probability, greedy_token_selection, token_length_normalized
from palmette.ir import (
    Argument,
    Checkpoint,
    Constraint,
    ExprList,
    Fork,
    Gen,
    Graph,
    HoleOptions,
    Join,
    Media,
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
    Variable,
)

RULES = (exact_probability, greedy_token_selection, token_length_normalized)
TYPES: dict[str, Any] = {"int": int, "str": str, "float": float, "bool": bool}
PARAMETERS = ("question", "n")

texts = st.text(max_size=12)
names = st.sampled_from(["x", "y", "résumé", "z z"])
finite = st.floats(0.0, 2.0, allow_nan=False)
sources = st.none() | st.builds(SourcePos, texts, st.integers(1, 999))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
options = st.builds(
    HoleOptions.of,
    max_tokens=st.none() | st.integers(0, 500),
    n=st.none() | st.integers(1, 4),
    stop=st.none() | st.lists(st.text(min_size=1, max_size=4), max_size=3),
    stop_token_ids=st.none() | st.lists(st.integers(0, 99), max_size=3),
    temperature=st.none() | finite,
    seed=st.none() | st.integers(),
    ignore_eos=st.none() | st.booleans(),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 99), st.floats(-9, 9), max_size=3),
    timeout=st.none() | st.floats(0.1, 9),
)
constraints = st.one_of(
    st.none(),
    st.builds(Constraint, st.sampled_from(["type", "dtype"]), st.sampled_from(list(TYPES.values()))),
    st.builds(Constraint, st.sampled_from(["regex", "grammar"]), texts),
    st.builds(Constraint, st.just("json_schema"), texts | st.dictionaries(texts, json_values, max_size=2)),
)
reads = st.builds(Argument, st.sampled_from(PARAMETERS), source=sources)
leaves: st.SearchStrategy[Node] = st.one_of(
    st.builds(Text, texts, sources),
    reads,
    st.builds(Gen, st.none() | names, options, constraints, st.none() | st.just("qwen3"), sources),
    st.builds(
        Select,
        st.none() | names,
        st.lists(texts, min_size=1, max_size=3).map(tuple),
        st.sampled_from(RULES),
        finite,
        sources,
    ),
    st.builds(Media, st.sampled_from(["image", "video"]), texts, st.integers(0, 9), sources),
    st.builds(SetVariable, names, json_values, sources),
    st.builds(SetVariable, names, st.lists(st.builds(Text, texts) | reads, min_size=1).map(tuple).map(ExprList)),
)


@st.composite
def streams(draw: st.DrawFn, path: tuple[int, ...] = ()) -> dict[tuple[int, ...], tuple[Node, ...]]:
    """A stream that keeps every rule, and its branches."""
    nodes: list[Node] = []
    found: dict[tuple[int, ...], tuple[Node, ...]] = {}
    forks = 0
    for index in range(draw(st.integers(0, 3))):
        block = draw(st.lists(leaves, max_size=3))
        match draw(st.sampled_from(["plain", "role", "scope", "rollback", "fork"])):
            case "plain":
                nodes += block
            case "role":
                nodes += [RoleBegin("user"), *block, RoleEnd("user")]
            case "scope":
                name = draw(names)
                nodes += [ScopeBegin(name), *block, ScopeEnd(name), Variable(name, path)]
            case "rollback":
                nodes += [Checkpoint(index), *block, Rollback(index)]
            case "fork" if len(path) < 4:
                size = draw(st.integers(1, 2))
                nodes += [Fork(forks, size), *block]
                for i in range(size):
                    found |= draw(streams((*path, forks, i)))
                if draw(st.booleans()):
                    nodes.append(Join(forks, "gather_variable", draw(st.sampled_from(["all", "collect"])), ("x",)))
                forks += 1
    return {**found, path: tuple(nodes)}


def graphs() -> st.SearchStrategy[Graph]:
    """Whole programs, some of which call others or stopped early."""
    stops = st.none() | st.builds(Stop, texts, sources)
    plain = st.builds(Graph, texts, st.just(PARAMETERS), streams(), st.just(()), stops)
    calls = st.lists(plain, max_size=2).map(tuple)
    return st.builds(Graph, texts, st.just(PARAMETERS), streams(), calls, stops)
