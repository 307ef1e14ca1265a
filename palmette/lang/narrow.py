"""The parts of pydantic's JSON schemas that can only be judged in the finished document.

Formats that say less than pydantic asks for, sets, and keys of dicts are rewritten to what is read back, or refused
with their place. Knows JSON schemas as data; nothing of pydantic itself.
"""

from __future__ import annotations

from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.lang import forms

MAX_UNIQUE = 10  # enumerated values up to which a set's items are kept apart, as the compiler does

_ANY_STRING = frozenset({"binary", "password", "path"})  # formats that any string satisfies
_REFUSED_FORMATS = {
    "base64": "use str, and decode it yourself",
    "base64url": "use str, and decode it yourself",
    "directory-path": "use pathlib.Path",
    "file-path": "use pathlib.Path",
    "ipv4interface": "use str with a pattern",
    "ipv4network": "use str with a pattern",
    "ipv6interface": "use str with a pattern",
    "ipv6network": "use str with a pattern",
    "ipvanyinterface": "use str with a pattern",
    "ipvanynetwork": "use str with a pattern",
    "json-string": "use the type inside Json[...] itself",
}
_KEY_PATTERNS = {
    "integer": "^(?:0|-?[1-9][0-9]{0,17})$",
    "number": r"^-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?$",
    "boolean": "^(?:true|false)$",
}
_NAMED_SCHEMAS = ("$defs", "properties", "patternProperties")
_LISTED_SCHEMAS = ("anyOf", "allOf", "oneOf", "prefixItems")
_ONE_SCHEMA = ("items", "additionalProperties", "propertyNames", "not", "contains")


def narrow(root: dict[str, Any]) -> None:
    """Rewrite, in place, what pydantic reads otherwise than the schema says."""
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        place, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        _narrow_format(place, schema)
        _narrow_set(root, place, schema)
        _narrow_keys(root, place, schema)
        for keyword in _NAMED_SCHEMAS:
            named = schema.get(keyword, {})
            stack += [(f"{place}/{keyword}/{_escaped(name)}", inner) for name, inner in named.items()]
        for keyword in _LISTED_SCHEMAS:
            stack += [(f"{place}/{keyword}/{i}", inner) for i, inner in enumerate(schema.get(keyword, []))]
        stack += [(f"{place}/{keyword}", schema[keyword]) for keyword in _ONE_SCHEMA if keyword in schema]


def _narrow_format(place: str, schema: dict[str, Any]) -> None:
    name = schema.get("format")
    if not isinstance(name, str):
        return
    if name in _REFUSED_FORMATS:
        raise UnsupportedConstraint(place, f"format {name}", "pydantic asks for more than a pattern can say",
                                    _REFUSED_FORMATS[name])  # fmt: skip
    if name == "ipvanyaddress":
        del schema["format"]
        schema["anyOf"] = [{"format": "ipv4"}, {"format": "ipv6"}]
    elif name in _ANY_STRING or (name.startswith("uuid") and schema.get("pattern") in forms.BARE):
        del schema["format"]


def _narrow_set(root: dict[str, Any], place: str, schema: dict[str, Any]) -> None:
    """Pydantic drops what a set repeats, so a repetition matters only where items are counted."""
    if schema.get("uniqueItems") is not True:
        return
    items = _followed(root, schema.get("items", {}))
    values = items.get("enum", [items["const"]] if "const" in items else None)
    if values is not None and len(values) <= MAX_UNIQUE:
        return
    if schema.get("minItems", 0) > 1:
        reason = f"a set of {schema['minItems']} or more different items cannot be promised"
        raise UnsupportedConstraint(place, "uniqueItems", reason, "use a list, or items from a short enum")
    del schema["uniqueItems"]


def _narrow_keys(root: dict[str, Any], place: str, schema: dict[str, Any]) -> None:
    """Keys are strings in JSON; of other types those are written that pydantic reads."""
    if "propertyNames" not in schema:
        return
    key = _followed(root, schema["propertyNames"])
    rest = key.keys() - {"type", "title", "description"}
    kind = key.get("type")
    if not key.keys() - {"title", "description"}:
        del schema["propertyNames"]
    elif kind in _KEY_PATTERNS and not rest:
        schema["propertyNames"] = {"pattern": _KEY_PATTERNS[kind]}
    elif kind != "string":
        hint = "use str, int, float or bool keys, or an enum of strings"
        raise UnsupportedConstraint(place, "propertyNames", "keys of this type are not enforced", hint)


def _followed(root: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The schema behind a reference into $defs."""
    seen = set()
    while isinstance(schema, dict) and "$ref" in schema and schema["$ref"] not in seen:
        seen.add(schema["$ref"])
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")]
    return schema if isinstance(schema, dict) else {}


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")


def untitled(schema: Any) -> Any:
    """A copy without the titles that pydantic makes of names. As deep as the author's type."""
    if isinstance(schema, list):
        return [untitled(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: untitled(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
