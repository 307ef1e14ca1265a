"""Types as constraints: every text that is allowed is a value, and every value has a text that is allowed."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from types import GenericAlias
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Optional, Union

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    UUID4,
    AliasChoices,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    FiniteFloat,
    HttpUrl,
    IPvAnyAddress,
    Json,
    NaiveDatetime,
    RootModel,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    create_model,
)
from typing_extensions import TypedDict

import palmette as pm
from palmette.lang.ranges import integers
from palmette.lang.types import TypedSpec, typed
from palmette.specs import Choices, Concat, JsonSchema, Regex, Spec
from tests.lang.walks import accepts, compiled, walk


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Answer(StrEnum):
    NO = "no"
    NOT_SURE = "not sure"


class Blank(Enum):
    NOTHING = ""
    SOMETHING = "x"


class Item(BaseModel):
    name: str
    count: int = 1
    price: Decimal | None = None


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Node(BaseModel):
    value: int
    children: list[Node] = []


@dataclass
class Point:
    x: int
    label: str = field(init=False, default="p")


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Pair(NamedTuple):
    first: int
    second: str = "s"


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, str_min_length=2, str_max_length=9, extra="forbid")
    text: str


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Aliased(BaseModel):
    a: int = Field(alias="the a")
    b: str = Field(validation_alias=AliasChoices("b1", "b2"))


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    number: Decimal
    colour: Colour
    ids: set[uuid.UUID]
    pair: tuple[int, bytes]
    by_number: dict[int, float]


class Root(RootModel[list[int]]):
    pass


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Money = Annotated[Decimal, Field(max_digits=5, decimal_places=2, ge=0)]

TYPES: list[Any] = [
    int, float, bool, str, bytes, None, Any, dict, list, Decimal, Fraction, date, datetime, time, timedelta, uuid.UUID,
    AwareDatetime, NaiveDatetime, UUID4, HttpUrl, AnyUrl, IPvAnyAddress, SecretStr, FiniteFloat, Money,
    Colour, Size, Answer, Blank, Item, Node, Point, Movie, Pair, Stripped, Open, Aliased, Strict, Root, Pet, list[Pet],
    Literal["a"], Literal["a", "b"], Literal["1", 1], Literal[1, "a", True, None], Literal["no", "now", "no\nlines"],
    Optional[int], Union[int, str, list[int]], date | None,  # noqa: UP007, UP045
    Literal["a"] | None, Item | list[Item],
    list[int], list[Item], set[int], frozenset[Colour], tuple[int, str], tuple[int, ...], dict[str, int],
    dict[int, str], dict[float, int], dict[bool, int], dict[Colour, int], dict[date, int], dict[uuid.UUID, Item],
    dict[Annotated[str, Field(pattern="^a")], int],
    Annotated[int, Field(gt=3, le=1234)], Annotated[int, Field(ge=-5, lt=100, multiple_of=5)],
    Annotated[float, Field(gt=0, lt=1)], Annotated[str, Field(min_length=2, max_length=4)],
    Annotated[str, Field(pattern=r"^[A-Z]{2}\d+$")], Annotated[str, StringConstraints(strip_whitespace=True)],
    Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    Annotated[list[int], Field(min_length=2, max_length=3)], Annotated[set[Colour], Field(min_length=2)],
    Annotated[Decimal, Field(max_digits=3)], Annotated[Decimal, Field(decimal_places=1)],
    Annotated[Decimal, Field(max_digits=2, decimal_places=2)], Annotated[Decimal, Field(multiple_of=0.25)],
]  # fmt: skip


def text_of(spec: TypedSpec, written: str) -> str:
    """What stays of a text that its stop strings cut."""
    ends = [written.index(stop) for stop in spec.stop if stop in written]
    return written[: min(ends, default=len(written))]


@pytest.mark.parametrize("type_", TYPES, ids=lambda t: re.sub(r"\W+", " ", str(t))[:40].strip())
def test_whatever_is_written_under_the_mask_is_a_value_of_the_type(type_: Any) -> None:
    spec = typed(type_)
    constraint = compiled(spec.spec)
    rng = random.Random(7)
    written = 0
    for budget in (12, 12, 40, 40, 150, 300):
        text = walk(constraint, rng, budget)
        if text is not None:
            written += 1
            spec.parse(text_of(spec, text))  # raises ValueError for what is none
    assert written


# -- how they are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (int, "-42", -42),
        (float, "1.5e3", 1500.0),
        (bool, "true", True),
        (None, "null", None),
        (str, '"a \\"b\\""', 'a "b"'),
        (Literal["yes", "no"], "yes", "yes"),
        (Literal[1, "a", None], "null", None),
        (Colour, "blue", Colour.BLUE),
        (Size, "2", Size.LARGE),
        (Blank, '""', Blank.NOTHING),
        (Literal["1", 1], '"1"', "1"),
        (date, "2024-02-29", date(2024, 2, 29)),
        (time, "09:30:00", time(9, 30)),
        (datetime, "2024-05-01T12:00:00", datetime(2024, 5, 1, 12)),
        (timedelta, "P1DT2H", timedelta(days=1, hours=2)),
        (uuid.UUID, "12345678-1234-4234-8234-123456789abc", uuid.UUID("12345678-1234-4234-8234-123456789abc")),
        (Colour | None, '"red"', Colour.RED),
        (list[date], '["2024-02-29"]', [date(2024, 2, 29)]),
        (Item, '{"name": "x"}', Item(name="x")),
        (Item, '{"name": "x", "count": 2, "price": 1.25}', Item(name="x", count=2, price=Decimal("1.25"))),
        (Pair, '[1, "b"]', Pair(1, "b")),
        (Point, '{"x": 1}', Point(1)),
        (Movie, '{"title": "M"}', {"title": "M"}),
        (set[int], "[1, 1, 2]", {1, 2}),
        (dict[int, str], '{"1": "a"}', {1: "a"}),
        (Pet, '{"kind": "dog", "name": "Rex"}', Dog(name="Rex")),
        (Node, '{"value": 1, "children": [{"value": 2}]}', Node(value=1, children=[Node(value=2)])),
        (Root, "[1]", Root([1])),
        (bytes, '"ab"', b"ab"),
        (Fraction, '"1/3"', Fraction(1, 3)),
    ],
)
def test_the_written_form_and_the_value(type_: Any, text: str, value: Any) -> None:
    spec = typed(type_)
    assert accepts(compiled(spec.spec), text)
    assert spec.parse(text) == value


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (int, "007"),
        (Annotated[int, Field(ge=3, le=12)], "13"),
        (date, "2023-02-29"),
        (date, "0000-01-01"),
        (datetime, "2024-05-01T12:00:60"),
        (AwareDatetime, "2024-05-01T12:00:00"),
        (NaiveDatetime, "2024-05-01T12:00:00Z"),
        (UUID4, "12345678-1234-1234-8234-123456789abc"),
        (Item, '{"name": "x", "colour": "red"}'),
        (Item, '{"count": 1}'),
        (Point, '{"x": 1, "label": "q"}'),
        (Pet, '{"lives": 9}'),
        (dict[int, str], '{"a": "b"}'),
        (dict[Annotated[str, Field(pattern="^a")], int], '{"b": 1}'),
        (Annotated[set[Colour], Field(min_length=2)], '["red", "red"]'),
        (Money, "1.234"),
        (Money, "1234"),
        (Stripped, '{"text": " a "}'),
        (FiniteFloat, "1e999"),
    ],
)
def test_what_is_no_value_is_not_allowed(type_: Any, text: str) -> None:
    spec = typed(type_)
    assert not accepts(compiled(spec.spec), text)
    assert isinstance(spec.spec, Regex | Choices | JsonSchema | Concat)


def test_a_model_that_allows_extra_fields_stays_open() -> None:
    assert accepts(compiled(typed(Open).spec), '{"a": 1, "more": [true]}')


@pytest.mark.parametrize(
    ("type_", "kind", "stop"),
    [
        (int, Regex, (" ", "\n")),
        (date, Regex, ()),
        (datetime, Regex, (" ", "\n")),
        (Literal["yes", "no"], Choices, ()),
        (Answer, Regex, ("\n",)),
        (Money, Concat, (" ", "\n")),
        (Annotated[float, Field(gt=0, lt=1)], Concat, (" ", "\n")),
        (Item, JsonSchema, ()),
        (str, JsonSchema, ()),
        (bool, JsonSchema, ()),
    ],
)
def test_a_text_that_begins_another_is_ended_by_a_space_or_a_line_break(
    type_: Any, kind: type[Spec], stop: tuple[str, ...]
) -> None:
    spec = typed(type_)
    assert isinstance(spec.spec, kind)
    assert spec.stop == stop
    if stop:
        example = {int: "4", datetime: "2024-05-01T12:00:00", Answer: "no"}.get(type_, "0.5")
        assert accepts(compiled(spec.spec), example + "\n")


# -- what is refused -----------------------------------------------------------------------------------------------


class Holder(BaseModel):
    inner: list[dict[str, Annotated[set[str], Field(min_length=3)]]]


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        (Holder, "uniqueItems at /properties/inner/items/additionalProperties cannot be enforced: a set of 3"),
        (complex, "complex has no form"),
        (Json, "Json has no form"),
        (FilePath, "format file-path"),
        (Callable[[int], int], "type"),
        (dict[tuple[int, int], int], "propertyNames"),
        (dict[int | str, int], "propertyNames"),
        (re.Pattern, "format"),
        (print, "function"),
        (list[Callable[[], None] | int], "branch of a union"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_its_place(type_: Any, message: str) -> None:
    with pytest.raises((pm.UnsupportedConstraint, pm.InvalidOption), match=re.escape(message)) as caught:
        pm.gen("x", type=type_)
    assert caught.value.hole == "x"
    assert "test_types.py" in str(caught.value.source)


def test_what_is_no_type_is_an_invalid_option() -> None:
    for wrong in ("NoSuchModel", object(), [int]):
        with pytest.raises(pm.InvalidOption, match="type"):
            pm.gen("x", type=wrong)


def test_without_pydantic_a_type_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "palmette.lang.json_types", None)

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "palmette.lang.json_types":
            raise ModuleNotFoundError("No module named 'pydantic'", name="pydantic")
        return real(name, *args, **kwargs)

    real = __import__
    monkeypatch.setattr("builtins.__import__", missing)
    with pytest.raises(pm.UnsupportedFeature, match=r"pip install 'pydantic"):
        typed(list[list[list[int]]])


def test_a_type_that_needs_another_package_names_it() -> None:
    pydantic = pytest.importorskip("pydantic")
    try:
        import email_validator  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(pm.InvalidOption, match="email-validator"):
            pm.gen("x", type=pydantic.EmailStr)


def test_a_type_is_read_once() -> None:
    assert typed(Item) is typed(Item)
    unhashable = Annotated[int, {"a": 1}]
    assert typed(unhashable).spec == typed(int).spec


# -- whole values, there and back ----------------------------------------------------------------------------------

SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-(10**12), 10**12)),
    (bool, st.booleans()),
    (str, st.text(max_size=8)),
    (type(None), st.none()),
    (date, st.dates()),
    (uuid.UUID, st.uuids(version=4)),
    (Colour, st.sampled_from(Colour)),
    (Literal["a", "b c"], st.sampled_from(["a", "b c"])),
    (float, st.integers(-999, 999).map(lambda n: n / 8)),
]


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """A type and one of its values."""
    kind = draw(st.integers(0, 4)) if depth else 0
    if kind == 0:
        type_, values = draw(st.sampled_from(SCALARS))
        return type_, draw(values)
    pair: tuple[Any, Any] = draw(typed_values(depth=depth - 1))
    inner, value = pair
    if kind == 1:
        return GenericAlias(list, (inner,)), [value] * draw(st.integers(0, 2))
    if kind == 2:
        names = draw(st.lists(st.text(max_size=4), max_size=2, unique=True))
        return GenericAlias(dict, (str, inner)), dict.fromkeys(names, value)
    if kind == 3:
        return inner | None, draw(st.sampled_from([value, None]))
    names = draw(st.lists(st.sampled_from(["alpha", "beta", "gamma"]), min_size=1, max_size=3, unique=True))
    fields: dict[str, Any] = {}
    given_values: dict[str, Any] = {}
    for name in names:
        type_, inner_value = draw(typed_values(depth=depth - 1))
        optional = draw(st.booleans())
        fields[name] = (type_ | None, None) if optional else (type_, ...)
        if not optional or draw(st.booleans()):
            given_values[name] = inner_value
    model = create_model("Model", **fields)
    return model, model(**given_values)


@given(typed_values())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_value_has_a_text_that_is_allowed_and_reads_back_equal(pair: tuple[Any, Any]) -> None:
    type_, value = pair
    spec = typed(type_)
    plain = TypeAdapter(type_).dump_python(value, mode="json", exclude_unset=True)
    text = json.dumps(plain, ensure_ascii=False)
    if not spec.is_json:
        text = plain if isinstance(plain, str) else text
    assert accepts(compiled(spec.spec), text)
    assert spec.parse(text) == value


@given(st.none() | st.integers(-2000, 2000), st.none() | st.integers(-2000, 2000), st.integers(-3000, 3000))
@settings(max_examples=200, deadline=None)
def test_integers_between_bounds(low: int | None, high: int | None, value: int) -> None:
    pattern = integers(low, high)
    inside = (low is None or value >= low) and (high is None or value <= high)
    assert bool(pattern and re.fullmatch(pattern, str(value))) == inside
    assert not pattern or not re.fullmatch(pattern, "-0")
    assert not pattern or not re.fullmatch(pattern, f"0{value}")
