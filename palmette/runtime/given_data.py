"""Data that users wrote, for a chat template: which of their texts are theirs and which are words that templates read.

A schema's keywords and type names are read by templates, and cannot be special tokens; all else in a schema, in
arguments and in a template's variables is a user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.formats import ToolSchema
from palmette.runtime.template_origin import Arguments, Given

MAX_DEPTH = 128  # of JSON inside JSON; schemas hold two levels for each of their own
WORD = re.compile(r"[A-Za-z0-9_.:\-]{1,64}")  # cannot be a special token of a family that is supported
_KEYWORDS = {
    "type", "description", "title", "properties", "required", "items", "enum", "const", "default", "examples",
    "format", "anyOf", "oneOf", "allOf", "not", "additionalProperties", "patternProperties", "propertyNames",
    "prefixItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "nullable",
    "$ref", "$defs", "$schema", "definitions", "if", "then", "else", "dependentRequired", "dependentSchemas", "$id",
    "$anchor", "$comment",
}  # fmt: skip
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentRequired", "dependentSchemas"))
_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))


def given_schema(value: Any, *, are_names: bool = False) -> Any:
    """A schema whose words are told from its user's."""
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            is_keyword = not are_names and key in _KEYWORDS
            inner = given_schema(item, are_names=is_keyword and key in _NAMED)
            is_type = is_keyword and key == "type" and _names_types(item)
            made[key if is_keyword else Given(key)] = item if is_type else inner
        return made
    return [given_schema(item) for item in value] if isinstance(value, list) else given_data(value)


def _names_types(value: Any) -> bool:
    return all(isinstance(name, str) and name in _TYPES for name in (value if isinstance(value, list) else [value]))


def given_data(value: Any) -> Any:
    """Data of which every text is a user's."""
    if isinstance(value, str):
        return Given(value)
    if isinstance(value, Mapping):
        return {Given(key): given_data(item) for key, item in value.items()}
    return [given_data(item) for item in value] if isinstance(value, list | tuple) else value


def given_variable(value: Any) -> Any:
    """The same, but for single words, which templates compare."""
    return value if isinstance(value, str) and WORD.fullmatch(value) else given_data(value)


def given_arguments(text: str) -> Any:
    """Arguments as a mapping, or as they are where they are none."""
    try:
        members = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return Given(text)
    if not isinstance(members, dict) or _is_deeper(members, MAX_DEPTH):
        return Given(text)
    return Arguments(given_data(members), Given(text if text.strip() else "{}"))


def parameters_of(tool: ToolSchema) -> Any:
    """Raises UnsupportedConstraint for what is no JSON or too deep."""
    path = f"tool {tool.name}"
    try:
        schema = json.loads(tool.parameters.text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedConstraint(path, "parameters", f"they are no JSON that can be read: {error}") from None
    if _is_deeper(schema, MAX_DEPTH):
        raise UnsupportedConstraint(path, "parameters", f"they are nested deeper than {MAX_DEPTH} levels")
    return schema


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            item for v in level if isinstance(v, dict | list) for item in (v.values() if isinstance(v, dict) else v)
        ]
        if not level:
            return False
    return True
