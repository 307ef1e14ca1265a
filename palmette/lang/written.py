"""How the values of a JSON schema are written where they stand alone in a hole.

Inside containers everything is JSON. At the top, numbers, booleans and null are what they are in JSON, and the values
of an enumeration, dates, times, durations and UUIDs stand without quotes. Where one such text begins another (1 and 10)
only an end tells them apart: a space or a line break is allowed there and is a stop string, so that a model that goes
on with its text ends the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from palmette.lang import forms
from palmette.lang.ranges import integers
from palmette.specs import Choices, Concat, JsonSchema, Regex, Spec

_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "deprecated", "$defs"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]+)?"
_SPECIAL = re.compile(r"([\\.^$*+?{}\[\]|()/\-])")
_ENDS = (" ", "\n")
_COMPLETE = frozenset({forms.DATE, *forms.UUID.values()})  # no text of these begins another


@dataclass(frozen=True, slots=True)
class Written:
    """The constraint on a text, the stop strings that come with it, and how the text reads as JSON."""

    spec: Spec
    as_json: Callable[[str], str] = field(compare=False, repr=False)
    stop: tuple[str, ...] = ()


def written(schema: Mapping[str, Any]) -> Written:
    """How values of `schema` are written.

    Raises:
        UnsupportedConstraint: it is no JSON.
    """
    top = _followed(schema)
    said = top.keys() - _ANNOTATIONS
    found = None
    if said <= {"enum", "const", "type"} and said & {"enum", "const"}:
        found = _enumerated(top["enum"] if "enum" in top else [top["const"]])
    elif said == {"type", "pattern"} and top["pattern"] in forms.BARE:
        pattern = top["pattern"]
        found = Written(Regex(pattern), json.dumps) if pattern in _COMPLETE else _ended(pattern[1:-1], json.dumps)
    elif top.get("type") == "number" and said == {"type"}:
        found = _ended(_NUMBER, _same)
    elif top.get("type") == "integer" and said <= {"type", *_BOUNDS}:
        found = _integer(top)
    if found is None and _is_number(top):
        spec = Concat((JsonSchema.of(schema), Regex(f"[{''.join(_ENDS)}]?")))
        found = Written(spec, _same, _ENDS)
    return found or Written(JsonSchema.of(schema), _same)


def _is_number(top: Mapping[str, Any]) -> bool:
    """Whether only numbers satisfy it: it says so itself, or a part of its `allOf` does, as for a Decimal."""
    return top.get("type") in ("number", "integer") or any(map(_is_number, top.get("allOf", [])))


def _followed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The top, behind references that say nothing more."""
    top: Any = schema
    seen: set[str] = set()
    while (
        isinstance(top, Mapping) and not top.keys() - _ANNOTATIONS - {"$ref"} and top.get("$ref") not in {None, *seen}
    ):
        seen.add(top["$ref"])
        name = str(top["$ref"]).removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
        top = schema.get("$defs", {}).get(name)
    return top if isinstance(top, Mapping) else {}


def _enumerated(values: list[Any]) -> Written | None:
    """The values by their texts; None where two have the same one, or one has none."""
    texts = {_bare(value): json.dumps(value) for value in values}
    if len(texts) < len(values) or "" in texts or any(isinstance(value, list | dict) for value in values):
        return None

    def as_json(text: str) -> str:
        return texts.get(text, json.dumps(text))

    begins_another = any(a != b and b.startswith(a) for a in texts for b in texts) if len(texts) <= 500 else False
    if begins_another and not any("\n" in text for text in texts):
        return _ended("|".join(_SPECIAL.sub(r"\\\1", text) for text in texts), as_json, ends=("\n",))
    return Written(Choices(tuple(texts)), as_json)


def _integer(top: Mapping[str, Any]) -> Written | None:
    bounds = {name: top[name] for name in _BOUNDS if name in top}
    if any(bound != int(bound) for bound in bounds.values()):
        return None
    lows = [int(bounds["minimum"])] if "minimum" in bounds else []
    lows += [int(bounds["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in bounds else []
    highs = [int(bounds["maximum"])] if "maximum" in bounds else []
    highs += [int(bounds["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in bounds else []
    pattern = integers(max(lows, default=None), min(highs, default=None))
    return None if pattern is None else _ended(pattern, _same)


def _ended(pattern: str, as_json: Callable[[str], str], *, ends: tuple[str, ...] = _ENDS) -> Written:
    return Written(Regex(f"(?:{pattern})[{''.join(ends)}]?"), as_json, ends)


def _bare(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _same(text: str) -> str:
    return text
