"""Typed holes on the real engine: whatever a model without any sense writes, values come back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import palmette as pm
from palmette.lang.types import typed
from palmette.testing import tiny_runtime


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    name: Annotated[str, Field(max_length=6)]
    colours: list[Colour] = []
    parts: list[Part] = []


class Order(BaseModel):
    number: Annotated[int, Field(ge=1, le=99)]
    due: date
    part: Part | None
    note: str


def lookup(word: Annotated[str, Field(max_length=5)]) -> str:
    return word[::-1]


@pytest.fixture(scope="module")
def runtime() -> Iterator[pm.Runtime]:
    with tiny_runtime(kv_tokens=1 << 15) as runtime:
        yield runtime


@pm.function
def fill(s: pm.State, type_: Any, **options: Any) -> Any:
    s += "Something:"
    return s.gen("x", type=type_, **options)


TYPES = [Order, Part, list[Order], Literal["yes", "no"], date, int, float, bool, str, Colour, dict[str, int],
         tuple[int, str], Annotated[int, Field(ge=1, le=12)], pm.ToolCall[lookup] | Part]  # fmt: skip


@pytest.mark.parametrize("type_", TYPES, ids=lambda t: str(t)[:40])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_value_is_one_of_its_type_however_short_the_budget(
    runtime: pm.Runtime, type_: Any, temperature: float
) -> None:
    for seed, budget in enumerate((90, 160)):
        state = fill.run(
            type_, max_tokens=budget, on_budget="close", temperature=temperature, backend=runtime, seed=seed
        )
        assert typed(type_).parse(state.text_of("x")) == state["x"]


def test_a_hole_that_the_budget_closed_is_told_apart(runtime: pm.Runtime) -> None:
    with pytest.raises(pm.Truncated) as caught:
        fill(Annotated[list[str], Field(min_length=4)], max_tokens=20, temperature=1.0, seed=2, backend=runtime)
    assert len(caught.value.partial) >= 4


def test_parts_of_a_value_come_while_it_is_written(runtime: pm.Runtime) -> None:
    state = fill.run(Order, max_tokens=160, on_budget="close", temperature=1.0, seed=1, backend=runtime, stream=True)
    parts = list(state.stream("x"))
    assert isinstance(parts[-1], Order)
    assert all(isinstance(part, dict) for part in parts[:-1])
    assert parts[0] == {"number": parts[-1].number}
    assert "".join(state.text_iter("x")) == state.text_of("x")


def test_a_budget_into_which_no_value_fits_is_refused_at_once(runtime: pm.Runtime) -> None:
    with pytest.raises(pm.PalmetteError, match=r"hole 'x'"):
        fill(Order, max_tokens=3, backend=runtime)


def test_dtype_ends_at_a_space(runtime: pm.Runtime) -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "n=" + pm.gen_int("n", max_tokens=30) + ";" + pm.gen("b", dtype=bool)

    state = program.run(temperature=1.0, seed=4, backend=runtime)
    int(state["n"])
    assert state["b"] in ("True", "False")
