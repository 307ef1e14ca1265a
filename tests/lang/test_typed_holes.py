"""Typed and constrained holes in programs: what is asked of the backend, what a read gives, and what is raised."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator

import palmette as pm
from palmette.ir import Constraint, Gen, dumps, loads, to_text
from palmette.specs import Choices, Grammar, JsonSchema, Regex, SchemaOptions, Spec
from palmette.testing import Reply, ScriptedBackend
from palmette.types import GenerateRequest


class Invoice(BaseModel):
    customer: str
    amount: float
    items: list[str] = []


class Contradiction(BaseModel):
    n: Annotated[str, Field(min_length=5, max_length=3)]


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("it is odd")
        return n


INVOICE = '{"customer": "Ada", "amount": 2.5, "items": ["a", "b"]}'


@pm.function
def fill(s: pm.State, **options: Any) -> None:
    s += "x:" + pm.gen("x", **options)


def sent(backend: ScriptedBackend) -> GenerateRequest:
    """The one request of a run."""
    (request,) = backend.requests
    assert isinstance(request, GenerateRequest)
    return request


# -- values --------------------------------------------------------------------------------------------------------


def test_a_hole_of_a_model_is_a_value_of_it_and_its_text_stays() -> None:
    backend = ScriptedBackend([INVOICE])
    state = fill.run(type=Invoice, backend=backend)
    assert state["x"] == Invoice(customer="Ada", amount=2.5, items=["a", "b"])
    assert state.text_of("x") == INVOICE
    assert state.text() == "x:" + INVOICE
    spec = sent(backend).constraint
    assert isinstance(spec, JsonSchema)
    assert json.loads(spec.text)["additionalProperties"] is False


@pytest.mark.parametrize(
    ("options", "reply", "value", "spec"),
    [
        ({"regex": "[a-c]+"}, "abc", "abc", Regex("[a-c]+")),
        ({"json_schema": '{"type": "integer"}'}, "12", "12", JsonSchema('{"type": "integer"}')),
        ({"json_schema": {"type": "integer"}}, "12", "12", JsonSchema('{"type": "integer"}')),
        ({"grammar": 'root ::= "a" root | "b"'}, "aab", "aab", Grammar('root ::= "a" root | "b"')),
        ({"dtype": int}, "-12", "-12", None),
        ({"dtype": "int"}, "12 apples", "12", None),
        ({"dtype": float}, "1.5\n", "1.5", None),
        ({"dtype": bool}, "True", "True", None),
        ({"dtype": str}, '"a b"', '"a b"', None),
        ({"type": Literal["a", "b"]}, "b", "b", Choices(("a", "b"))),
        ({"type": int}, "12\n", 12, None),
        ({"type": date}, "2024-02-29", date(2024, 2, 29), None),
        ({"type": list[int]}, "[1, 2]", [1, 2], None),
    ],
)
def test_a_constraint_crosses_the_seam_and_the_value_comes_back(
    options: dict[str, Any], reply: str, value: Any, spec: Spec | None
) -> None:
    backend = ScriptedBackend([reply])
    assert fill.run(**options, backend=backend)["x"] == value
    assert sent(backend).constraint is not None
    assert spec is None or sent(backend).constraint == spec


def test_a_pydantic_model_as_json_schema_gives_text() -> None:
    backend = ScriptedBackend([INVOICE])
    assert fill.run(json_schema=Invoice, backend=backend)["x"] == INVOICE


def test_schema_options_are_kept() -> None:
    backend = ScriptedBackend(['{"a":1}'])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    compact = JsonSchema.of(schema, SchemaOptions(compact=True))
    assert fill.run(json_schema=compact, backend=backend)["x"] == '{"a":1}'


def test_gen_int_and_gen_string() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "n=" + pm.gen_int("n") + " name=" + pm.gen_string("name")

    state = program.run(backend=ScriptedBackend(["4 ", '"Ada"']))
    assert state["n"] == "4"
    assert state["name"] == '"Ada"'
    assert state.text() == 'n=4 name="Ada"'


def test_the_stop_strings_of_dtype_join_those_of_the_hole_and_of_the_run() -> None:
    backend = ScriptedBackend(["1\n", "2\n"])
    fill.run(dtype=int, stop="\n", backend=backend)
    with pm.options(stop="END"):
        fill.run(dtype=int, backend=backend)
    stops = [request.params.stop for request in backend.requests if isinstance(request, GenerateRequest)]
    assert stops == [("\n", " "), ("END", " ", "\n")]


def test_several_samples_are_several_values() -> None:
    state = fill.run(type=int, n=2, backend=ScriptedBackend(["1", "22"]))
    assert state["x"] == [1, 22]
    assert state.text_of("x") == "1"


def test_the_type_may_come_first_and_s_gen_waits_for_the_value() -> None:
    @pm.function
    def program(s: pm.State) -> Invoice:
        s += "x:"
        invoice = s.gen(Invoice, max_tokens=99)
        assert invoice.customer == "Ada"
        return invoice

    assert program(backend=ScriptedBackend([INVOICE])).amount == 2.5


def test_a_body_may_return_the_hole_itself() -> None:
    @pm.function
    def extract(s: pm.State, text: str) -> Any:
        s += text + ":"
        return pm.gen(Invoice)

    @pm.function
    async def aextract(s: pm.State, text: str) -> Any:
        s += text + ":"
        return pm.gen("x", type=Invoice)

    @pm.function
    def both(s: pm.State) -> Any:
        return extract(s, "inline")

    backend = ScriptedBackend(lambda prompt: INVOICE)
    expected = Invoice(customer="Ada", amount=2.5, items=["a", "b"])
    assert extract("t", backend=backend) == expected
    assert aextract("t", backend=backend) == expected
    assert both(backend=backend) == expected
    assert asyncio.run(aextract.amap(["t", "u"], backend=backend)) == [expected, expected]
    assert extract.run("t", backend=backend).text() == "t:" + INVOICE


def test_typed_values_are_gathered_by_a_join() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a"
        with s.fork(2) as branches:
            branches += pm.gen("n", type=int)

    assert program.run(backend=ScriptedBackend(["1", "1"]))["n"] == [1, 1]


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regex": "(a"}, pm.UnsupportedConstraint, r"\( at offset 0 .* never closed"),
        ({"regex": r"(a)\1"}, pm.UnsupportedConstraint, "back-reference"),
        ({"regex": 3}, pm.InvalidOption, "regex=3"),
        ({"json_schema": "{"}, pm.UnsupportedConstraint, "not JSON"),
        ({"json_schema": {"properties": {"a": {"type": "int"}}}}, pm.UnsupportedConstraint, "type at /properties/a"),
        ({"json_schema": {"unevaluatedProperties": False}}, pm.UnsupportedConstraint, "unevaluatedProperties"),
        ({"json_schema": 3}, pm.InvalidOption, "json_schema"),
        ({"grammar": "nonsense"}, pm.UnsupportedConstraint, "grammar"),
        ({"dtype": list}, pm.InvalidOption, "one of int, float, bool, str"),
        ({"dtype": "number"}, pm.InvalidOption, "other types are for type="),
        ({"type": int, "regex": "a"}, pm.InvalidOption, "not together"),
        ({"on_budget": "stop"}, pm.InvalidOption, "'raise' or 'close'"),
    ],
)
def test_what_would_not_be_enforced_is_refused_on_the_authors_line(
    options: dict[str, Any], error: type[pm.PalmetteError], message: str
) -> None:
    with pytest.raises(error, match=message):
        pm.gen("x", **options)


def test_the_refusal_names_hole_and_line() -> None:
    with pytest.raises(pm.UnsupportedConstraint) as caught:
        pm.gen("x", regex="(a")
    assert caught.value.hole == "x"
    assert "test_typed_holes.py" in str(caught.value)
    assert caught.value.hint


def test_a_backend_must_take_the_kind_that_a_type_becomes() -> None:
    backend = ScriptedBackend(constraints=("choices",))
    with pytest.raises(pm.UnsupportedConstraint, match="scripted does not enforce json_schema, which it becomes"):
        fill.run(type=Invoice, backend=backend)
    assert backend.requests == []
    assert fill.run(type=Literal["a"], backend=ScriptedBackend(["a"], constraints=("choices",)))["x"] == "a"


def test_a_stop_pattern_of_the_run_is_never_dropped_either() -> None:
    with pytest.raises(pm.UnsupportedConstraint, match="stop_regex"):
        fill.run(stop_regex="a", backend=ScriptedBackend(["b"], constraints=()))
    with pytest.raises(pm.UnsupportedConstraint, match="stop_regex"), pm.options(stop_regex="a"):
        fill.run(regex="b", backend=ScriptedBackend(["b"], constraints=("regex",)))


@pytest.mark.parametrize(
    "options",
    [
        {"type": Annotated[int, Field(gt=5, lt=3)]},
        {"type": Contradiction},
        {"regex": "[^\\s\\S]"},
        {"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}},
        {"grammar": 'root ::= "a" root'},
    ],
)
def test_what_nothing_satisfies_is_refused_on_its_line(options: dict[str, Any]) -> None:
    with pytest.raises(pm.UnsupportedConstraint, match="no text satisfies") as caught:
        pm.gen("x", **options)
    assert "test_typed_holes.py" in str(caught.value)


def test_a_validator_that_says_no_is_an_error_with_the_text() -> None:
    with pytest.raises(pm.InvalidValue, match="n: Value error, it is odd") as caught:
        fill.run(type=Even, backend=ScriptedBackend(['{"n": 3}']))
    assert caught.value.text == '{"n": 3}'
    assert caught.value.hole == "x"
    assert "s.retry" in str(caught.value)
    assert caught.value.state.text() == 'x:{"n": 3}'


def test_retry_draws_again_until_the_validator_is_content() -> None:
    @pm.function
    def program(s: pm.State) -> int:
        for _ in s.retry(until=lambda s: s["x"], attempts=3):
            s += "x:" + pm.gen("x", type=Even)
        n: int = s["x"].n
        return n

    backend = ScriptedBackend(['{"n": 3}', '{"n": 5}', '{"n": 4}'])
    assert program(backend=backend) == 4
    with pytest.raises(pm.RetryExhausted) as caught:
        program(backend=ScriptedBackend(['{"n": 3}'] * 3))
    assert isinstance(caught.value.__cause__, pm.InvalidValue)


def test_retry_awaited() -> None:
    @pm.function
    async def program(s: pm.State) -> int:
        async for _ in s.retry(until=lambda s: s["x"], attempts=2):
            s += "x:" + pm.gen("x", type=Even)
        return int((await s.get("x")).n)

    assert program(backend=ScriptedBackend(['{"n": 3}', '{"n": 4}'])) == 4


def test_a_typed_hole_that_the_budget_closed_raises_with_what_there_is() -> None:
    closed = Reply('{"customer": "Ada", "amount": 0}', steered=True)
    with pytest.raises(pm.Truncated, match="max_tokens") as caught:
        fill.run(type=Invoice, backend=ScriptedBackend([closed]))
    assert caught.value.partial == {"customer": "Ada", "amount": 0}
    assert caught.value.text == closed.text
    state = fill.run(type=Invoice, on_budget="close", backend=ScriptedBackend([closed]))
    assert state["x"] == Invoice(customer="Ada", amount=0)
    assert state.get_meta_info("x")["steered"] is True
    with pm.options(on_budget="close"):
        assert fill.run(type=Invoice, backend=ScriptedBackend([closed]))["x"].amount == 0


def test_a_text_hole_that_the_budget_closed_says_so_in_its_meta_info() -> None:
    state = fill.run(regex="a+b", backend=ScriptedBackend([Reply("aab", steered=True)]))
    assert state["x"] == "aab"
    assert state.get_meta_info("x")["finish_reason"]["type"] == "length"
    assert state.get_meta_info("x")["steered"] is True


def test_a_stop_string_that_cuts_a_value_raises() -> None:
    with pytest.raises(pm.Truncated, match="stop string 'amount'") as caught:
        fill.run(type=Invoice, stop="amount", backend=ScriptedBackend([INVOICE]))
    assert caught.value.partial == {"customer": "Ada"}
    with pytest.raises(pm.Truncated) as caught:
        fill.run(type=date, stop="-", backend=ScriptedBackend(["2024-02-29"]))
    assert caught.value.partial is None


# -- the script ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reply", "message"),
    [
        ({"regex": "[a-c]+"}, "abd", "what follows 'ab' does not"),
        ({"regex": "abc"}, "ab", "it ends too early"),
        ({"type": Invoice}, '{"customer": 1}', "does not satisfy"),
        ({"type": Literal["a", "b"]}, "c", "does not satisfy"),
        ({"type": Invoice, "max_tokens": 10}, INVOICE, "closed in time, not cut"),
    ],
)
def test_a_script_that_breaks_the_constraint_fails_its_hole(options: Any, reply: str, message: str) -> None:
    with pytest.raises(pm.RequestError, match=message):
        fill.run(**options, backend=ScriptedBackend([reply]))


def test_a_script_stops_at_patterns() -> None:
    state = fill.run(stop_regex=r"[0-9]{2}", backend=ScriptedBackend(["a1b22c"]))
    assert state["x"] == "a1b"


# -- streaming -----------------------------------------------------------------------------------------------------


def test_streaming_a_typed_hole_gives_what_is_closed_and_then_the_value(
    scripted: Callable[..., ScriptedBackend],
) -> None:
    scripted([INVOICE], piece=3)
    state = fill.run(type=Invoice, stream=True)
    parts = list(state.stream("x"))
    assert parts == [
        {"customer": "Ada"},
        {"customer": "Ada", "amount": 2.5},
        {"customer": "Ada", "amount": 2.5, "items": ["a"]},
        {"customer": "Ada", "amount": 2.5, "items": ["a", "b"]},
        {"customer": "Ada", "amount": 2.5, "items": ["a", "b"]},
        Invoice(customer="Ada", amount=2.5, items=["a", "b"]),
    ]
    assert "".join(state.text_iter("x")) == INVOICE


def test_streaming_awaited_and_of_a_bare_value(scripted: Callable[..., ScriptedBackend]) -> None:
    scripted(["[1, 2]", "2024-02-29"], piece=1)

    async def collect(type_: Any) -> list[Any]:
        state = fill.run(type=type_, stream=True)
        return [part async for part in state.astream("x")]

    assert asyncio.run(collect(list[int])) == [[1], [1, 2], [1, 2]]
    assert asyncio.run(collect(date)) == [date(2024, 2, 29)]


def test_streaming_text_is_as_before(scripted: Callable[..., ScriptedBackend]) -> None:
    scripted(["abcdef", "abcdef"], piece=4)
    assert list(fill.run(regex="[a-z]+", stream=True).stream("x")) == ["abcd", "ef"]


def test_a_stream_ends_with_the_error_of_its_hole(scripted: Callable[..., ScriptedBackend]) -> None:
    scripted(['{"n": 3}'])
    state = fill.run(type=Even, stream=True)
    parts = state.stream("x")
    assert next(parts) == {"n": 3}
    with pytest.raises(pm.InvalidValue):
        next(parts)


# -- the IR --------------------------------------------------------------------------------------------------------


@pm.function
def traced(s: pm.State, q: str) -> None:
    s += q + pm.gen("invoice", type=Invoice) + pm.gen("n", dtype=int) + pm.gen("r", regex="[a-z]+")


def test_a_typed_hole_prints_by_its_name_and_comes_back_from_json() -> None:
    graph = traced.trace().graph
    assert "gen invoice type=Invoice" in to_text(graph)
    assert "gen n dtype=int" in to_text(graph)
    types = {"Invoice": Invoice, "int": int}
    assert loads(dumps(graph), types=types) == graph
    holes = [node for node in loads(dumps(graph)).streams[()] if isinstance(node, Gen)]
    assert holes[0].constraint is not None
    assert json.loads(holes[0].constraint.value.schema)["additionalProperties"] is False


def test_an_unbound_type_is_enforced_all_the_same_and_yields_plain_data() -> None:
    loaded = [node for node in loads(dumps(traced.trace().graph)).streams[()] if isinstance(node, Gen)]

    @pm.function
    def program(s: pm.State) -> None:
        s += "x:"
        for node in loaded:
            s += node

    backend = ScriptedBackend([INVOICE, "4 ", "abc"])
    state = program.run(backend=backend)
    assert state["invoice"] == json.loads(INVOICE)
    assert state["n"] == "4"
    assert state["r"] == "abc"
    assert all(isinstance(r, GenerateRequest) and r.constraint is not None for r in backend.requests)


def test_a_hole_built_by_hand_is_checked_when_it_is_appended() -> None:
    @pm.function
    def program(s: pm.State, constraint: Constraint) -> None:
        s += "x:"
        s += Gen("x", constraint=constraint)

    assert program.run(Constraint("regex", "a+"), backend=ScriptedBackend(["aa"]))["x"] == "aa"
    with pytest.raises(pm.UnsupportedConstraint, match="never closed"):
        program.run(Constraint("regex", "(a"), backend=ScriptedBackend(["aa"]))


def test_a_constraint_made_of_an_argument_ends_the_trace_there() -> None:
    @pm.function
    def program(s: pm.State, pattern: str) -> None:
        s += "x:" + pm.gen("x", regex=pattern + "b")

    trace = program.trace()
    assert trace.stopped is not None
    assert "known only in a run" in str(trace.stopped)
    assert program.run("a", backend=ScriptedBackend(["ab"]))["x"] == "ab"
