"""A conjunction of schemas, flattened: `$ref` and `allOf` followed, the keywords of all of them collected.

An element is a place with the keywords that were already dealt with; a conjunction is a sorted tuple of elements. What
makes alternatives (`anyOf`, `oneOf`, `if`, dependencies) becomes groups of derived places, to be chosen from by the
compiler. Knows keywords, not languages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias

from palmette.errors import UnsupportedConstraint
from palmette.fsm.schema.negate import ANNOTATIONS, negation
from palmette.fsm.schema.source import Source

Element: TypeAlias = tuple[str, tuple[str, ...]]  # place, keywords of it to be left out
Conjunction: TypeAlias = tuple[Element, ...]

ALL_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})  # "integer": only integers are left
_FOLLOWED = frozenset(
    [
        "$ref",
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "~all",
        "~not",
    ]
)
_GROUPS = ("anyOf", "oneOf", "~any")
_OBJECT = frozenset(
    [
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "minProperties",
        "maxProperties",
        "propertyNames",
    ]
)
_ARRAY = frozenset(
    ["items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains"]
)
_STRING = frozenset(["minLength", "maxLength", "pattern", "format", "~notPattern", "~notFormat"])
_NUMBER = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "~notMultipleOf"])
HANDLED = _OBJECT | _ARRAY | _STRING | _NUMBER | {*_GROUPS, "type", "enum", "const", "~notEnum"}
HINTS = {
    "unevaluatedProperties": "use additionalProperties beside properties",
    "unevaluatedItems": "use items beside prefixItems",
    "maxContains": "remove it, or check it after generation",
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
}


@dataclass(slots=True)
class Group:
    """Alternatives one of which must hold. `exclusive`: exactly one."""

    place: str
    keyword: str
    branches: list[str]
    exclusive: bool = False


@dataclass(slots=True)
class Flat:
    """What all schemas of a conjunction ask for, by kind of value. `sources` are its elements, followed."""

    never: bool = False
    types: frozenset[str] = ALL_TYPES
    integer: bool = False  # numbers must be integers
    enums: list[tuple[str, list[Any]]] = field(default_factory=list)  # (place, values)
    excluded: list[tuple[str, list[Any]]] = field(default_factory=list)
    strings: list[tuple[str, str, Any]] = field(default_factory=list)  # (place, keyword, value)
    numbers: list[tuple[str, str, Any]] = field(default_factory=list)
    objects: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # (place, its object keywords)
    arrays: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    sources: list[Element] = field(default_factory=list)
    unenforced: list[str] = field(default_factory=list)

    def without(self, group: Group, branch: str) -> Conjunction:
        """This conjunction with `branch` chosen from `group`."""
        kept = [
            (place, tuple(sorted({*gone, group.keyword})) if place == group.place else gone)
            for place, gone in self.sources
        ]
        return tuple(sorted({*kept, (branch, ())}))


def flatten(conjunction: Conjunction, source: Source, *, strict: bool) -> Flat:
    """Collect the keywords of `conjunction`.

    Raises:
        UnsupportedConstraint: a keyword that is not handled (if `strict`), one with a wrong value, or a `$ref` that
            leads back to itself without a value in between.
    """
    flat = Flat()
    seen: set[Element] = set()
    stack: list[tuple[Element, tuple[str, ...]]] = [(e, ()) for e in reversed(conjunction)]
    while stack:
        (place, gone), trail = stack.pop()
        if place in trail:
            raise UnsupportedConstraint(place, "$ref", "it refers back to itself without a value in between")
        if (place, gone) in seen:
            continue
        seen.add((place, gone))
        schema = source.at(place)
        if isinstance(schema, bool):
            flat.never |= not schema
            continue
        keywords = {k: v for k, v in schema.items() if k not in gone and k not in ANNOTATIONS}
        if source.legacy and "$ref" in keywords:
            keywords = {"$ref": keywords["$ref"]}
        below = (*trail, place)
        stack += [((p, ()), below) for p in reversed(_followed(place, keywords, source))]
        rest = {k: v for k, v in keywords.items() if k not in _FOLLOWED}
        if rest:
            left_out = {*gone, *(keywords.keys() - rest.keys())}
            flat.sources.append((place, tuple(sorted(left_out))))
            _collect(flat, place, rest, source, strict=strict)
    return flat


def _collect(flat: Flat, place: str, keywords: dict[str, Any], source: Source, *, strict: bool) -> None:
    for keyword, value in keywords.items():
        if keyword == "type":
            _restrict_types(flat, place, value)
        elif keyword in ("enum", "const", "~notEnum"):
            values = [value] if keyword == "const" else _list(place, keyword, value)
            (flat.excluded if keyword == "~notEnum" else flat.enums).append((place, values))
        elif keyword in _STRING:
            flat.strings.append((place, keyword, value))
        elif keyword in _NUMBER:
            _number(flat, place, keyword, value, keywords)
        elif keyword not in HANDLED:
            _other(flat, place, keyword, value, strict=strict)
    of_objects = {k: v for k, v in keywords.items() if k in _OBJECT}
    if of_objects:
        flat.objects.append((place, of_objects))
    of_arrays = {k: v for k, v in keywords.items() if k in _ARRAY}
    if of_arrays:
        flat.arrays.append((place, of_arrays))
    _group(flat, place, keywords, source)


def _other(flat: Flat, place: str, keyword: str, value: Any, *, strict: bool) -> None:
    if keyword == "nullable" and value is False:
        return
    if keyword in HINTS or keyword in ("nullable", "$dynamicRef"):
        hint = HINTS.get(keyword, "add null to type")
        if strict:
            raise UnsupportedConstraint(place, keyword, "this keyword is not enforced", hint)
        flat.unenforced.append(f"{place} {keyword}")
    # Any other name is not a keyword of JSON Schema: the standard makes it an annotation (2020-12 core, 4.3.1).


def _restrict_types(flat: Flat, place: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    allowed = set()
    for name in names:
        if name == "any":
            return
        if not isinstance(name, str) or (name not in ALL_TYPES and name != "integer"):
            raise UnsupportedConstraint(place, "type", f"{name!r} is not a type")
        allowed.add(name)
    if "integer" in allowed and "number" not in allowed:
        flat.integer = flat.integer or "number" in flat.types
        allowed.add("number")
    flat.types &= allowed


def _number(flat: Flat, place: str, keyword: str, value: Any, keywords: dict[str, Any]) -> None:
    if isinstance(value, bool) and keyword.startswith("exclusive"):  # draft 4: it sharpens the other keyword
        return
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise UnsupportedConstraint(place, keyword, f"its value must be a number, not {value!r:.40}")
    opened = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}.get(keyword)
    if opened and keywords.get(opened) is True:
        keyword = opened
    flat.numbers.append((place, keyword, Decimal(value)))


def _group(flat: Flat, place: str, keywords: dict[str, Any], source: Source) -> None:
    for keyword in _GROUPS:
        if keyword in keywords:
            branches = keywords[keyword]
            if keyword != "~any":
                count = len(_list(place, keyword, branches))
                branches = [source.child(place, keyword, i) for i in range(count)]
            flat.groups.append(Group(place, keyword, branches, exclusive=keyword == "oneOf"))


def _followed(place: str, keywords: dict[str, Any], source: Source) -> list[str]:
    """Places that hold whenever `place` does."""
    out: list[str] = []
    if "$ref" in keywords:
        out.append(source.resolve(place, keywords["$ref"]))
    if "allOf" in keywords:
        out += [source.child(place, "allOf", i) for i in range(len(_list(place, "allOf", keywords["allOf"])))]
    out += keywords.get("~all", [])
    if "~not" in keywords:
        out.append(negation(source, keywords["~not"]))
    if "not" in keywords:
        out.append(negation(source, source.child(place, "not")))
    if "if" in keywords and ("then" in keywords or "else" in keywords):
        condition = source.child(place, "if")
        branches = []
        for keyword, holds in (("then", condition), ("else", negation(source, condition))):
            both = [holds, source.child(place, keyword)] if keyword in keywords else [holds]
            branches.append(source.add(place, f"if {keyword}", {"~all": both}))
        out.append(source.add(place, "if", {"~any": branches}))
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for i, (name, wanted) in enumerate(keywords.get(keyword, {}).items()):
            absent = source.add(place, f"{keyword} {i} absent", {"properties": {name: False}})
            if isinstance(wanted, list):
                present = source.add(place, f"{keyword} {i} present", {"required": wanted})
            else:
                present = source.child(place, keyword, name)
            out.append(source.add(place, f"{keyword} {i}", {"~any": [absent, present]}))
    return out


def _list(place: str, keyword: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise UnsupportedConstraint(place, keyword, "its value must be a list")
    return value
