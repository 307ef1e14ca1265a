"""The JSON schema of a Python type: pydantic's, made so that every text it allows is a value of the type.

Pydantic describes what it reads, and leaves out what JSON Schema says clumsily or not at all. Here objects of models
are closed unless the model says extra="allow", tags of unions are required, dates and their like have patterns, and
keys of dicts are those that the key type reads. What cannot be said is refused with its place. What a validator of the
author's checks is not in the schema: it runs on the finished text.

Imports pydantic, so it is itself imported where a type is first used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NoReturn

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.lang import forms
from palmette.lang.narrow import narrow

DECIMAL_DIGITS = 15  # what pydantic reads exactly out of a JSON number
FINITE = 1e30  # bound of floats that must be finite: bounded numbers are written without exponent


def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Pydantic's adapter.

    Raises:
        InvalidOption: no type, or one that pydantic cannot read.
    """
    try:
        return TypeAdapter(type_)
    except (
        PydanticSchemaGenerationError,
        PydanticUndefinedAnnotation,
        PydanticUserError,
        TypeError,
        ImportError,  # of what a type of pydantic's own needs beside it
    ) as error:
        reason = str(error).splitlines()[0]
        raise InvalidOption("type", type_, f"a type that pydantic can read: {reason}") from None


def schema_of(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The schema of the texts that are held to the type.

    Raises:
        UnsupportedConstraint: a part of the type has none.
    """
    try:
        schema = adapter.json_schema(schema_generator=_Schema, mode="validation")
    except PydanticInvalidForJsonSchema as error:
        raise UnsupportedConstraint("", "type", str(error).splitlines()[0]) from None
    except PydanticUserError as error:  # a name in it that nothing defines
        raise InvalidOption("type", adapter, f"a type that is whole: {str(error).splitlines()[0]}") from None
    narrow(schema)
    return schema


def read(adapter: TypeAdapter[Any], text: str) -> Any:
    """The value of a text in JSON.

    Raises:
        ValueError: what pydantic says against it, one place after the other.
    """
    try:
        return adapter.validate_json(text, strict=False)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ValueError("; ".join(lines)) from error


class _Schema(GenerateJsonSchema):
    """Pydantic's generator with the parts that know more than a JSON schema does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._configs: list[Any] = [{}]  # of the models around the place, innermost last

    def emit_warning(self, kind: Any, detail: str) -> None:
        if kind == "skipped-choice":  # a union would silently lose a branch
            raise UnsupportedConstraint("", "type", f"a branch of a union has no JSON form: {detail}")

    # -- objects ---------------------------------------------------------------------------------------------------

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        with self._under(schema):
            return _closed(super().model_schema(schema), open_=bool(schema.get("root_model")))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        with self._under(schema):
            return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        with self._under(schema):
            return _closed(super().typed_dict_schema(schema))

    @contextmanager
    def _under(self, schema: Any) -> Iterator[None]:
        self._configs.append(schema.get("config") or self._configs[-1])
        yield
        self._configs.pop()

    def dataclass_args_schema(self, schema: core_schema.DataclassArgsSchema) -> JsonSchemaValue:
        taken: Any = [field for field in schema["fields"] if field.get("init", True)]
        return super().dataclass_args_schema({**schema, "fields": taken})

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return self._mapping(schema)

    def frozendict_schema(self, schema: Any) -> JsonSchemaValue:
        return self._mapping(schema)

    def ordered_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return self._mapping(schema)

    def _mapping(self, schema: Any) -> JsonSchemaValue:
        out: JsonSchemaValue = {"type": "object", "additionalProperties": True}
        if "values_schema" in schema:
            out["additionalProperties"] = self.generate_inner(schema["values_schema"]) or True
        if "keys_schema" in schema:
            out["propertyNames"] = self.generate_inner(schema["keys_schema"])
        if "min_length" in schema:
            out["minProperties"] = schema["min_length"]
        if "max_length" in schema:
            out["maxProperties"] = schema["max_length"]
        return out

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """The tag is required in every branch: without it pydantic cannot tell which one it reads."""
        out = super().tagged_union_schema(schema)
        branches: list[JsonSchemaValue] = out.pop("oneOf")
        tag = out.pop("discriminator", {}).get("propertyName")
        required = [] if tag is None else [tag]
        return {**out, "anyOf": [{"allOf": [branch, {"required": required}]} for branch in branches]}

    # -- scalars ---------------------------------------------------------------------------------------------------

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        config = self._configs[-1]
        out = super().str_schema(schema)
        for name, keyword in {"str_min_length": "minLength", "str_max_length": "maxLength"}.items():
            if config.get(name):
                out.setdefault(keyword, config[name])
        if schema.get(
            "strip_whitespace", config.get("str_strip_whitespace")
        ):  # what is stripped must not count for min_length or pattern
            out = {"allOf": [out, {"pattern": r"^(?:\S(?:[\s\S]*\S)?)?$"}], "type": "string"}
        return out

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        out = super().float_schema(schema)
        if schema.get("allow_inf_nan", self._configs[-1].get("allow_inf_nan")) is False:
            out.setdefault("minimum", -FINITE)
            out.setdefault("maximum", FINITE)
        return out

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """A JSON number with no more digits than the type takes, in front of the point and behind it."""
        out: JsonSchemaValue = {"type": "number"}
        names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        for name, keyword in {**names, "multiple_of": "multipleOf"}.items():
            if schema.get(name) is not None:
                out[keyword] = _number(keyword, schema[name])  # type: ignore[literal-required]
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if digits is not None and places is None:  # one digit more behind the point is one less in front of it
            digits = min(digits, DECIMAL_DIGITS)
            shapes = [{"allOf": [_below(digits - k), _places(k)]} for k in range(digits + 1)]
            return {"allOf": [out, {"anyOf": shapes}]}
        whole = DECIMAL_DIGITS if digits is None else min(digits, DECIMAL_DIGITS)
        if places is None:
            return {"allOf": [out, _below(whole)]}
        if whole <= places:  # pydantic counts the 0 in front of the point where nothing follows it
            out["not"] = {"const": 0}
        return {"allOf": [out, _below(max(whole - places, 0)), _places(places)]}

    def fraction_schema(self, schema: Any) -> JsonSchemaValue:
        return _written(forms.FRACTION)

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        return _written(forms.DATE)

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        return _written(forms.TIME[_zone(schema.get("tz_constraint"))])

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        return _written(forms.DATETIME[_zone(schema.get("tz_constraint"))])

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        return _written(forms.DURATION)

    def uuid_schema(self, schema: core_schema.UuidSchema) -> JsonSchemaValue:
        return _written(forms.UUID[schema.get("version")])

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        return _url(super().url_schema(schema), schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        return _url(super().multi_host_url_schema(schema), schema.get("allowed_schemes"))

    def call_schema(self, schema: core_schema.CallSchema) -> JsonSchemaValue:
        return self._no_form("a function", "ToolCall[f] is a call of it")

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        return self._no_form("complex", "use two numbers")

    def json_schema(self, schema: core_schema.JsonSchema) -> JsonSchemaValue:
        return self._no_form("Json", "use the type inside Json[...] itself")

    def generator_schema(self, schema: core_schema.GeneratorSchema) -> JsonSchemaValue:
        return self._no_form("Iterable", "pydantic reads it lazily, use list")

    def _no_form(self, what: str, hint: str) -> NoReturn:
        raise UnsupportedConstraint("", "type", f"{what} has no form that is enforced", hint)


def _closed(schema: JsonSchemaValue, *, open_: bool = False) -> JsonSchemaValue:
    """A model writes the fields it declares and no others, unless it says extra="allow"."""
    if schema.get("type") == "object" and not open_:
        schema.setdefault("additionalProperties", False)
    return schema


def _written(pattern: str) -> JsonSchemaValue:
    return {"type": "string", "pattern": pattern}


def _url(schema: JsonSchemaValue, schemes: Any) -> JsonSchemaValue:
    out = _written(forms.url(schemes))
    if schema.get("maxLength", forms.URL_LENGTH) < forms.URL_LENGTH:
        out["maxLength"] = schema["maxLength"]
    return out


def _zone(constraint: Any) -> str | None:
    if isinstance(constraint, int):
        raise UnsupportedConstraint("", "type", "a fixed offset from UTC is not enforced", "use AwareDatetime")
    return None if constraint is None else str(constraint)


def _below(digits: int) -> JsonSchemaValue:
    """At most so many digits in front of the point."""
    return {"exclusiveMinimum": -(10**digits), "exclusiveMaximum": 10**digits}


def _places(count: int) -> JsonSchemaValue:
    """At most so many digits behind the point."""
    return {"multipleOf": _number("multipleOf", Decimal(1).scaleb(-count))}


def _number(keyword: str, value: Any) -> int | float:
    """A bound as JSON can hold it."""
    exact = Decimal(str(value))
    if exact == exact.to_integral_value():
        return int(exact)
    if Decimal(repr(float(exact))) != exact:
        raise UnsupportedConstraint("", keyword, f"{value} is no JSON number of this precision", "round it")
    return float(exact)
