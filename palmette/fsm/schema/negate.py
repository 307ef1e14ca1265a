"""`not`, by De Morgan: one level of a schema turned into alternatives, deeper levels left as `~not` for later.

Derived schemas use keywords of their own, which no document can contain by that meaning:
`~all` and `~any` (lists of places), `~not` (a place), `~notEnum`, `~notPattern`, `~notMultipleOf`, `~notFormat`.
"""

from __future__ import annotations

from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.schema.source import Schema, Source

ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$dynamicAnchor",
        "$comment",
        "$defs",
        "definitions",
        "$vocabulary",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    ]
)
# Keywords that can fail; any other name, however it looks, is an annotation by the standard (2020-12 core, 4.3.1).
ASSERTIONS = frozenset(
    [
        "type",
        "enum",
        "const",
        "required",
        "properties",
        "patternProperties",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "items",
        "prefixItems",
        "additionalItems",
        "contains",
        "minContains",
        "maxContains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "$ref",
        "nullable",
        "unevaluatedProperties",
        "unevaluatedItems",
        "$dynamicRef",
        "$recursiveRef",
        "~all",
        "~any",
        "~not",
        "~notEnum",
        "~notPattern",
        "~notMultipleOf",
        "~notFormat",
    ]
)
_TYPES = ("null", "boolean", "number", "string", "array", "object")
_COUNTS = {
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
_BOUNDS = {
    "minimum": "exclusiveMaximum",
    "maximum": "exclusiveMinimum",
    "exclusiveMinimum": "maximum",
    "exclusiveMaximum": "minimum",
}


def negation(source: Source, place: str) -> str:
    """The place of a schema for exactly the values that the schema at `place` refuses.

    Raises:
        UnsupportedConstraint: a keyword whose opposite cannot be enforced.
    """
    schema = source.at(place)
    if isinstance(schema, bool):
        return source.add(place, "not", not schema)
    keywords = {k: v for k, v in schema.items() if k not in ANNOTATIONS}
    if source.legacy and "$ref" in keywords:
        keywords = {"$ref": keywords["$ref"]}
    alternatives: list[str] = []
    for keyword, value in keywords.items():
        for i, opposite in enumerate(_opposites(source, place, keyword, value)):
            alternatives.append(source.add(place, f"not {keyword} {i}", opposite))
    return source.add(place, "not", {"~any": alternatives} if alternatives else False)


def _opposites(source: Source, place: str, keyword: str, value: Any) -> list[Schema]:
    """Schemas of which one holds exactly where `keyword` does not."""
    if keyword == "type":
        names = value if isinstance(value, list) else [value]
        others: list[Schema] = [{"type": [t for t in _TYPES if t not in names]}]
        if "integer" in names and "number" not in names:
            others = [{"type": [t for t in _TYPES if t not in (*names, "number")]}]
            others.append({"type": "number", "~notMultipleOf": 1})
        return others
    if keyword == "multipleOf":
        return [{"type": "number", "~notMultipleOf": value}]
    if keyword == "~notMultipleOf":
        return [{"multipleOf": value}]
    if keyword == "items" and not isinstance(value, list) and "prefixItems" not in source.at(place):
        return [{"type": "array", "contains": {"~not": source.child(place, "items")}}]
    if keyword in ("enum", "const"):
        return [{"~notEnum": [value] if keyword == "const" else value}]
    if keyword == "~notEnum":
        return [{"enum": value}]
    if keyword == "required":
        return [{"type": "object", "properties": {name: False}} for name in value]
    if keyword == "properties":
        return [
            {"type": "object", "required": [k], "properties": {k: {"~not": source.child(place, "properties", k)}}}
            for k in value
        ]
    if keyword in _COUNTS and isinstance(value, int):
        kind, opposite, by = _COUNTS[keyword]
        return [{"type": kind, opposite: value + by}] if value + by >= 0 else []
    if keyword in _BOUNDS and not isinstance(value, bool):
        return [{"type": "number", _BOUNDS[keyword]: value}]
    if keyword == "pattern":
        return [{"type": "string", "~notPattern": value}]
    if keyword == "contains" and not {"minContains", "maxContains"} & source.at(place).keys():
        return [{"type": "array", "items": {"~not": source.child(place, "contains")}}]
    if keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        out: list[Schema] = []
        for name, wanted in value.items():
            present = {"type": "object", "required": [name]}
            if isinstance(wanted, list):
                out += [{**present, "properties": {missing: False}} for missing in wanted]
            else:
                out.append({**present, "~not": source.child(place, keyword, name)})
        return out
    if keyword not in ASSERTIONS:
        return []
    if keyword == "format":
        return [{"type": "string", "~notFormat": value}]
    if keyword == "not":
        return [{"~all": [source.child(place, "not")]}]
    if keyword == "~not":
        return [{"~all": [value]}]
    if keyword in ("allOf", "~all"):
        places = value if keyword == "~all" else [source.child(place, keyword, i) for i in range(len(value))]
        return [{"~not": p} for p in places]
    if keyword in ("anyOf", "~any"):
        places = value if keyword == "~any" else [source.child(place, keyword, i) for i in range(len(value))]
        return [{"~all": [source.add(p, "negated", {"~not": p}) for p in places]}]
    if keyword == "$ref":
        return [{"~not": source.resolve(place, value)}]
    raise _refuse(place, keyword, "its opposite cannot be enforced")


def _refuse(place: str, keyword: str, reason: str) -> UnsupportedConstraint:
    return UnsupportedConstraint(place, f"not {keyword}", reason, "state what is allowed instead of what is not")
