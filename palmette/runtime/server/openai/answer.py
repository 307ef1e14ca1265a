"""What an answer must satisfy, out of a request's fields: OpenAI's `response_format`, and what others send instead.

    response_format  {"type": "text"}, and json_object, json_schema, structural_tag, regex, grammar, choices
    regex, ebnf, choices, json_schema, structured_outputs, guided_json, guided_regex, guided_choice, guided_grammar

One constraint or none. Whether a schema or a pattern can be enforced is found out where it is compiled; what is no
constraint at all is refused here, by its field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.formats.structural_tags import structural_spec
from palmette.specs import Choices, Grammar, JsonSchema, Regex, SchemaOptions, Spec

ANY_OBJECT: Final = JsonSchema.of({"type": "object"})
MAX_SHOWN = 80  # characters of a wrong value in a message


def answer_spec(
    response_format: Mapping[str, Any] | None, extensions: Mapping[str, Any], *, field: str = "response_format"
) -> Spec | None:
    """What the answer must satisfy; None for any text.

    Args:
        extensions: the request's other fields by name. Those that are no constraints are not looked at.
        field: what the request calls its response_format.

    Raises:
        InvalidOption: more than one constraint, a value of the wrong type, something left out.
        UnsupportedConstraint: a constraint that nobody here knows.
    """
    found: dict[str, Spec] = {}
    if response_format is not None and (spec := _of_format(response_format, field)) is not None:
        found[field] = spec
    for name, value in extensions.items():
        if value is None or value is False:
            continue
        read = _EXTENSIONS.get(name)
        if read is not None:
            found[name] = read(value, name)
        elif name.startswith("guided_") and not name.startswith("guided_decoding_"):
            raise UnsupportedConstraint(name, "constraint", "it is not known", f"known are {', '.join(_EXTENSIONS)}")
    return _only(found)


def _only(found: Mapping[str, Spec]) -> Spec | None:
    if len(found) > 1:
        raise InvalidOption(list(found)[1], "...", f"one constraint in a request; {' and '.join(found)} are given")
    return next(iter(found.values()), None)


# -- response_format ---------------------------------------------------------------------------------------------------


def _of_format(form: Mapping[str, Any], field: str) -> Spec | None:
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    read = _FORMATS.get(str(kind))
    if read is None:
        raise InvalidOption(f"{field}.type", _shown(kind), f"one of text, {', '.join(_FORMATS)}")
    return read(form, field)


def _json_object(form: Mapping[str, Any], field: str) -> Spec:
    schema = form.get("schema")  # some servers take one here
    return ANY_OBJECT if schema is None else _schema(schema, f"{field}.schema", strict=False)


def _json_schema(form: Mapping[str, Any], field: str) -> Spec:
    inner, place = form.get("json_schema"), f"{field}.json_schema"
    if inner is None and "schema" in form:  # as the Responses API writes it
        inner, place = form, field
    if not isinstance(inner, Mapping) or inner.get("schema") is None:
        raise InvalidOption(f"{place}.schema", None, 'a JSON Schema, or response_format {"type": "json_object"}')
    strict = inner.get("strict")
    if strict not in (None, True, False):
        raise InvalidOption(f"{place}.strict", _shown(strict), "true or false")
    return _schema(inner["schema"], f"{place}.schema", strict=strict is True)


def _structural_tag(form: Mapping[str, Any], field: str) -> Spec:
    return structural_spec(form)


def _member(*names: str, read: Callable[[Any, str], Spec]) -> Callable[[Mapping[str, Any], str], Spec]:
    """Reads the member of a response_format that has the first of `names` that is there."""

    def read_member(form: Mapping[str, Any], field: str) -> Spec:
        name = next((n for n in names if form.get(n) is not None), names[0])
        return read(form.get(name), f"{field}.{name}")

    return read_member


# -- values ------------------------------------------------------------------------------------------------------------


def _schema(value: Any, field: str, *, strict: bool = True) -> Spec:
    """A schema as data or as JSON text. Enforced in either case; without `strict`, but for what cannot be."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidOption(field, _shown(value), f"a JSON Schema: {error}") from None
    if not isinstance(value, Mapping | bool):
        raise InvalidOption(field, _shown(value), "a JSON Schema: an object, or its JSON text")
    return JsonSchema.of(value, SchemaOptions(strict=strict))


def _regex(value: Any, field: str) -> Spec:
    return Regex(_text(value, field, "a regular expression"))


def _grammar(value: Any, field: str) -> Spec:
    return Grammar(_text(value, field, "a grammar"))


def _choices(value: Any, field: str) -> Spec:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InvalidOption(field, _shown(value), "a list of texts, at least one")
    return Choices(tuple(value))


def _any_object(value: Any, field: str) -> Spec:
    if value is not True:
        raise InvalidOption(field, _shown(value), "true or false")
    return ANY_OBJECT


def _structural(value: Any, field: str) -> Spec:
    return structural_spec(value)


def _structured_outputs(value: Any, field: str) -> Spec:
    """vLLM's object: one constraint in it. What says how to compile it asks for nothing here."""
    if not isinstance(value, Mapping):
        raise InvalidOption(field, _shown(value), f"an object with one of {', '.join(_STRUCTURED)}")
    found: dict[str, Spec] = {}
    for name, item in value.items():
        place = f"{field}.{name}"
        if item is None or item is False or name.startswith(("disable_", "_")):
            continue
        if name == "whitespace_pattern":
            raise UnsupportedConstraint(place, name, "the white space of JSON is fixed here", "leave it out")
        if name not in _STRUCTURED:
            raise UnsupportedConstraint(place, "constraint", "it is not known", f"known are {', '.join(_STRUCTURED)}")
        found[place] = _STRUCTURED[name](item, place)
    spec = _only(found)
    if spec is None:
        raise InvalidOption(field, _shown(dict(value)), f"an object with one of {', '.join(_STRUCTURED)}")
    return spec


def _text(value: Any, field: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidOption(field, _shown(value), f"{what}, as a text")
    return value


def _shown(value: Any) -> Any:
    text = repr(value)
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


_Read = Callable[[Any, str], Spec]
_STRUCTURED: Final[Mapping[str, _Read]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choices,
    "grammar": _grammar,
    "json_object": _any_object,
    "structural_tag": _structural,
}
_EXTENSIONS: Final[Mapping[str, _Read]] = {
    "regex": _regex,
    "ebnf": _grammar,
    "choices": _choices,
    "json_schema": _schema,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choices,
    "guided_grammar": _grammar,
}
_FORMATS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Spec]]] = {
    "json_object": _json_object,
    "json_schema": _json_schema,
    "structural_tag": _structural_tag,
    "regex": _member("pattern", "regex", read=_regex),
    "grammar": _member("grammar", "ebnf", read=_grammar),
    "choices": _member("choices", "choice", read=_choices),
}
