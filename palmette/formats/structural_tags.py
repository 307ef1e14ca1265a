"""Structural tags: free text in which what stands between certain marks is held to a form.

Reads what users of SGLang, vLLM and xgrammar write:

    {"type": "structural_tag", "triggers": ["<function="],
     "structures": [{"begin": "<function=add>", "schema": {...}, "end": "</function>"}]}
    {"type": "structural_tag", "format": {"type": "triggered_tags", ...}}

and makes a specification of it. What it does not know it refuses with its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from palmette.errors import InvalidOption, UnsupportedConstraint
from palmette.specs import (
    MAX_SPEC_DEPTH,
    Concat,
    Grammar,
    JsonSchema,
    OneOf,
    Regex,
    Repeated,
    Spec,
    Tag,
    Tagged,
)

ANY_TEXT = Regex("(?s:.)*")


def structural_spec(value: Any) -> Spec:
    """The specification behind `structural_tag=`: a mapping, its JSON text, or a `Tagged`.

    Raises:
        UnsupportedConstraint: a format or field that would not be enforced, with its place.
        InvalidOption: something else than these.
    """
    if isinstance(value, Tagged):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidOption("structural_tag", value, f"JSON: {error}") from None
    if not isinstance(value, Mapping) or value.get("type") != "structural_tag":
        raise InvalidOption("structural_tag", value, 'a mapping or JSON text of "type": "structural_tag", or a Tagged')
    if "format" in value:
        _fields(value, "", ("format",))
        return _format(value["format"], "/format", 0)
    _fields(value, "", ("structures", "triggers"))
    listed = _list(value, "structures")
    structures = [_fields(s, f"/structures/{i}", ("begin", "schema", "end")) for i, s in enumerate(listed)]
    tags = tuple(Tag(_text(s, "begin"), _schema(s["schema"]), _text(s, "end")) for s in structures)
    return Tagged(tags, _texts(value, "triggers"))


def _format(form: Any, place: str, depth: int) -> Spec:
    if depth > MAX_SPEC_DEPTH:
        raise UnsupportedConstraint(place, "structural_tag", f"it is nested deeper than {MAX_SPEC_DEPTH} levels")
    kind = form.get("type") if isinstance(form, Mapping) else None
    read = _FORMATS.get(str(kind))
    if read is None:
        hint = f"known are {', '.join(_FORMATS)}"
        raise UnsupportedConstraint(place, "structural_tag", f"there is no format {kind!r}", hint)
    return read(form, place, depth + 1)


def _const(form: Any, place: str, depth: int) -> Spec:
    return Concat((_text(_fields(form, place, ("value",)), "value"),))


def _json(form: Any, place: str, depth: int) -> Spec:
    return _schema(_fields(form, place, ("json_schema",))["json_schema"])


def _regex(form: Any, place: str, depth: int) -> Spec:
    return Regex(_text(_fields(form, place, ("pattern",)), "pattern"))


def _grammar(form: Any, place: str, depth: int) -> Spec:
    return Grammar(_text(_fields(form, place, ("grammar",)), "grammar"))


def _any(form: Any, place: str, depth: int) -> Spec:
    _fields(form, place, (), {"excludes": []})
    return ANY_TEXT


def _sequence(form: Any, place: str, depth: int) -> Spec:
    return Concat(_elements(form, place, depth))


def _or(form: Any, place: str, depth: int) -> Spec:
    return OneOf(_elements(form, place, depth))


def _elements(form: Any, place: str, depth: int) -> tuple[Spec, ...]:
    elements = _list(_fields(form, place, ("elements",)), "elements")
    return tuple(_format(e, f"{place}/elements/{i}", depth) for i, e in enumerate(elements))


def _tag(form: Any, place: str, depth: int) -> Tag:
    _fields(form, place, ("begin", "content", "end"))
    content: Spec | None = _format(form["content"], f"{place}/content", depth)
    end = _text(form, "end")
    return Tag(_text(form, "begin"), None if content == ANY_TEXT and end else content, end)


def _lone_tag(form: Any, place: str, depth: int) -> Spec:
    tag = _tag(form, place, depth)
    if tag.content is None:  # any text up to its end
        raise UnsupportedConstraint(place, "any_text", "a tag of any text stands only among triggered tags")
    return Concat((tag.begin, tag.content, tag.end))


def _triggered(form: Any, place: str, depth: int) -> Spec:
    _fields(form, place, ("triggers", "tags"), {"at_least_one": None, "stop_after_first": None, "excludes": []})
    tags = tuple(_tag(t, f"{place}/tags/{i}", depth) for i, t in enumerate(_list(form, "tags")))
    return Tagged(tags, _texts(form, "triggers"), _flag(form, "at_least_one"), _flag(form, "stop_after_first"))


def _separated(form: Any, place: str, depth: int) -> Spec:
    _fields(form, place, ("tags", "separator"), {"at_least_one": None, "stop_after_first": None})
    tag = OneOf(tuple(_lone_tag(t, f"{place}/tags/{i}", depth) for i, t in enumerate(_list(form, "tags"))))
    high = 1 if _flag(form, "stop_after_first") else None
    return Repeated(tag, int(_flag(form, "at_least_one")), high, _text(form, "separator"))


def _repeated(low: int, high: int | None) -> Callable[[Any, str, int], Spec]:
    def read(form: Any, place: str, depth: int) -> Spec:
        return Repeated(_format(_fields(form, place, ("content",))["content"], f"{place}/content", depth), low, high)

    return read


_FORMATS: dict[str, Callable[[Any, str, int], Spec]] = {
    "const_string": _const,
    "json_schema": _json,
    "regex": _regex,
    "grammar": _grammar,
    "any_text": _any,
    "sequence": _sequence,
    "or": _or,
    "tag": _lone_tag,
    "triggered_tags": _triggered,
    "tags_with_separator": _separated,
    "optional": _repeated(0, 1),
    "plus": _repeated(1, None),
    "star": _repeated(0, None),
}


def _fields(form: Any, place: str, needed: tuple[str, ...], known: Mapping[str, Any] | None = None) -> Any:
    """`form`, when it has all fields that are needed and no others.

    Args:
        known: fields that may be left out; with the only value they may have, unless that is None.
    """
    if not isinstance(form, Mapping):
        raise InvalidOption("structural_tag", form, f"a mapping{' at ' + place if place else ''}")
    for name in needed:
        if name not in form:
            raise InvalidOption("structural_tag", sorted(form), f"{place or 'its top'} has {', '.join(needed)}")
    for name, value in form.items():
        only = (known or {}).get(name, ...) if name not in ("type", *needed) else None
        if only is not None and value != only:
            raise UnsupportedConstraint(f"{place}/{name}", "structural_tag", "this field would not be enforced")
    return form


def _text(form: Any, name: str) -> str:
    if not isinstance(form[name], str):
        raise InvalidOption(name, form[name], "a text")
    return str(form[name])


def _list(form: Any, name: str) -> list[Any]:
    if not isinstance(form[name], list | tuple):
        raise InvalidOption(name, form[name], "a list")
    return list(form[name])


def _texts(form: Any, name: str) -> tuple[str, ...]:
    if not isinstance(form[name], list | tuple) or not all(isinstance(text, str) for text in form[name]):
        raise InvalidOption(name, form[name], "a list of texts")
    return tuple(form[name])


def _flag(form: Any, name: str) -> bool:
    value = form.get(name, False)
    if not isinstance(value, bool):
        raise InvalidOption(name, value, "true or false")
    return value


def _schema(schema: Any) -> JsonSchema:
    return JsonSchema(schema) if isinstance(schema, str) else JsonSchema.of(schema)
