"""Specifications of constraints to JSON data and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette.errors import PalmetteError, UsageError
from palmette.ir.spec_data import spec_data, spec_of
from palmette.specs import (
    Choices,
    Concat,
    Grammar,
    Healed,
    JsonSchema,
    OneOf,
    Reasoned,
    Regex,
    Repeated,
    SchemaOptions,
    Spec,
    Tag,
    Tagged,
)

TEXTS = st.text("a<>{", min_size=1, max_size=4)
LEAVES: st.SearchStrategy[Spec] = st.one_of(
    st.builds(Regex, TEXTS),
    st.builds(Choices, st.lists(TEXTS, max_size=3).map(tuple)),
    st.builds(Grammar, TEXTS),
    st.builds(JsonSchema, TEXTS, st.builds(SchemaOptions, st.booleans(), st.integers(0, 16), st.booleans())),
)


def _larger(inner: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    maybe = st.none() | inner
    parts = st.lists(inner | TEXTS, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Concat, parts),
        st.builds(OneOf, parts),
        st.builds(Repeated, inner, st.integers(0, 2), st.none() | st.integers(2, 4), TEXTS),
        st.builds(Tagged, st.lists(st.builds(Tag, TEXTS, maybe, TEXTS), min_size=1, max_size=2).map(tuple)),
        st.builds(Reasoned, TEXTS, maybe, st.none() | st.integers(0, 9), TEXTS),
        st.builds(Healed, TEXTS, maybe),
    )


@given(st.recursive(LEAVES, _larger, max_leaves=6))
@settings(max_examples=100, deadline=None)
def test_every_specification_comes_back_equal(spec: Spec) -> None:
    assert spec_of(json.loads(json.dumps(spec_data(spec)))) == spec


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"spec": "os.system"},
        {"spec": "SchemaOptions"},
        {"spec": "Tag", "begin": "a", "content": None},
        {"spec": "Regex", "pattern": 3},
        {"spec": "Choices", "texts": "abc"},
        {"spec": "Choices", "texts": ["a", 1]},
        {"spec": "Repeated", "part": {"spec": "Regex", "pattern": "a"}, "low": True},
        {"spec": "Repeated", "part": "a"},
        {"spec": "Tagged", "tags": ["a"]},
        {"spec": "JsonSchema", "text": "{}", "options": None},
        {"spec": "Healed", "prefix": "a", "content": "b"},
    ],
)
def test_data_that_is_no_specification_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(PalmetteError):
        spec_of(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"spec": "Regex", "pattern": "a", "flags": "i"}, "no field 'flags'"),
        ({"spec": "Regex"}, "needs a field 'pattern'"),
        ({"spec": "Tagged", "tags": [{"spec": "Tag", " egin": "a", "content": None, "end": ""}]}, "no field ' egin'"),
    ],
)
def test_fields_that_are_not_those_of_the_specification_are_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec_of(data)
