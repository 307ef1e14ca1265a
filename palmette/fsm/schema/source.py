"""The schema document: reading it, its places, and what a `$ref` names.

A place is a JSON pointer from the document's root. Keyword rewriting (`negate`, `flat`) adds places of its own, which
resolve references like the place they were made from. Schemas that are written alike have one place, that of the first:
most documents say `{"type": "string"}` many times, and some repeat whole objects. Knows nothing of languages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, TypeAlias
from urllib.parse import unquote, urldefrag, urljoin

from palmette.errors import UnsupportedConstraint
from palmette.fsm.limits import Limits, exceeded

Schema: TypeAlias = Any  # a bool or a dict, as read
# Where schemas stand inside a schema: nowhere else does an id or an anchor name anything.
_ONE_SCHEMA = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
]
_LIST_OF_SCHEMAS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")
_LEGACY = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
_NESTED_VALUES = 8  # values inside values that one level of schemas may take
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


class Source:
    """A parsed schema document."""

    def __init__(self, text: str, limits: Limits) -> None:
        _check_nesting(text, limits)
        self.size = len(text)  # characters
        self.limits = limits
        try:
            self.root: Schema = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
        except ValueError as error:
            raise UnsupportedConstraint("", "schema", f"it is not JSON: {error}") from None
        dialect = self.root.get("$schema") if isinstance(self.root, dict) else None
        self.legacy = isinstance(dialect, str) and any(d in dialect for d in _LEGACY)  # $ref hides its siblings
        self._added: dict[str, tuple[Schema, str]] = {}  # place -> (schema, place whose base it has)
        self._bases: dict[str, str] = {}  # place of a subschema with its own id -> its absolute URI
        self._targets: dict[str, str] = {}  # absolute URI, with or without anchor -> place
        self._twins: dict[str, str] = {}  # place -> the first place with an equal schema
        schemas = self._collect_ids()
        if len(self._bases) == 1 and len(schemas) > 1:  # with more bases equal schemas may refer to different things
            self._find_twins(schemas)

    def at(self, place: str) -> Schema:
        """The schema at `place`.

        Raises:
            UnsupportedConstraint: there is none, or it is neither a boolean nor an object.
        """
        if place in self._added:
            return self._added[place][0]
        value = self._value(place)
        if not isinstance(value, bool | dict):
            raise UnsupportedConstraint(place, "schema", f"a schema is true, false or an object, not {value!r:.40}")
        return value

    def child(self, place: str, *tokens: str | int) -> str:
        """The place below `place` that `tokens` lead to."""
        below = place + "".join([f"/{_escaped(str(t))}" for t in tokens])
        if place in self._added:
            schema, origin = self._added[place]
            for token in tokens:
                schema = schema[token]
            self._added[below] = schema, origin
        return self._twins.get(below, below)

    def at_every_twin(self, notes: Iterable[str]) -> list[str]:
        """`notes` that begin with a place, said of every place that is written alike too."""
        out = dict.fromkeys(notes)
        if out and self._twins:
            twins: dict[str, list[str]] = {}
            for place, first in self._twins.items():
                twins.setdefault(first, []).append(place)
            waiting = list(out)
            while waiting:
                note = waiting.pop()
                pointer = note.partition(" format=")[0] if " format=" in note else note.rpartition(" ")[0]
                while pointer:
                    for place in twins.get(pointer, ()):
                        other = place + note[len(pointer) :]
                        if other not in out:
                            out[other] = None
                            waiting.append(other)
                    pointer = pointer.rpartition("/")[0]
        return list(out)

    def add(self, place: str, name: str, schema: Schema) -> str:
        """A new place for a schema that was derived from the one at `place`."""
        origin = self._added[place][1] if place in self._added else place
        below = f"{place}/~{name}"  # no pointer of the document contains a bare ~
        self._added[below] = schema, origin
        return below

    def resolve(self, place: str, reference: Any) -> str:
        """The place that a `$ref` at `place` names.

        Raises:
            UnsupportedConstraint: it is not in this document.
        """
        if not isinstance(reference, str):
            raise UnsupportedConstraint(place, "$ref", "a reference is a string")
        uri = urljoin(self._base_of(place), reference)
        if uri in self._targets:
            return self._targets[uri]
        document, fragment = urldefrag(uri)
        root = self._targets.get(document)
        if root is None:
            hint = "copy the schema it names into $defs"
            raise UnsupportedConstraint(place, "$ref", f"{reference!r} is not in this document", hint)
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            raise UnsupportedConstraint(place, "$ref", f"no schema has the anchor {fragment!r}")
        target = root + fragment
        self.at(target)
        return self._twins.get(target, target)

    def _value(self, place: str) -> Any:
        value: Any = self.root
        for token in place.split("/")[1:]:
            token = token.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(token)] if isinstance(value, list) else value[token]
            except (KeyError, IndexError, TypeError, ValueError):
                raise UnsupportedConstraint(place, "$ref", "there is nothing at this place") from None
        return value

    def _base_of(self, place: str) -> str:
        if place in self._added:
            place = self._added[place][1]
        while True:
            if place in self._bases:
                return self._bases[place]
            place = place.rpartition("/")[0]

    def _find_twins(self, schemas: list[tuple[str, Schema]]) -> None:
        """`schemas`: places with objects, in order. Values are numbered from the inside out, equal ones alike."""
        order = [self.root]
        for value in order:  # which grows
            if isinstance(value, dict):
                order += [v for v in value.values() if isinstance(v, dict | list)]
            elif isinstance(value, list):
                order += [v for v in value if isinstance(v, dict | list)]
        known: dict[tuple[Any, ...], int] = {}
        numbers: dict[int, int] = {}  # by the value's id
        for value in reversed(order):
            parts: list[Any] = [type(value)]
            if isinstance(value, dict):
                for k, v in value.items():
                    parts += (k, type(v), numbers[id(v)] if isinstance(v, dict | list) else v)
            elif isinstance(value, list):
                for v in value:
                    parts += (type(v), numbers[id(v)] if isinstance(v, dict | list) else v)
            numbers[id(value)] = known.setdefault(tuple(parts), len(known))
        firsts: dict[int, str] = {}
        for place, schema in schemas:
            first = firsts.setdefault(numbers[id(schema)], place)
            if first != place:
                self._twins[place] = first

    def _collect_ids(self) -> list[tuple[str, Schema]]:
        """Returns the places where objects stand as schemas."""
        schemas: list[tuple[str, Schema]] = []
        self._bases[""] = ""
        stack: list[tuple[str, Any, str, int]] = [("", self.root, "", 0)]
        while stack:
            place, value, base, depth = stack.pop()
            if not isinstance(value, dict):
                continue
            if depth > self.limits.schema_depth:
                raise exceeded("schema_depth", self.limits.schema_depth, place, "deeper schemas")
            schemas.append((place, value))
            depth += 1
            own = value.get("$id", value.get("id") if self.legacy else None)
            if isinstance(own, str):
                if own.startswith("#"):
                    self._targets.setdefault(base + own, place)
                else:
                    base = urldefrag(urljoin(base, own))[0]
                    self._bases[place] = base
                    self._targets.setdefault(base, place)
            if not place:
                self._targets.setdefault(base, place)
                self._targets.setdefault("", place)
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(value.get(keyword), str):
                    self._targets.setdefault(f"{base}#{value[keyword]}", place)
            for key, inner in value.items():
                here = f"{place}/{_escaped(key)}"
                if key in _LIST_OF_SCHEMAS and isinstance(inner, list):
                    stack += [(f"{here}/{i}", v, base, depth) for i, v in enumerate(inner)]
                elif key in _ONE_SCHEMA:
                    stack.append((here, inner, base, depth))
                elif key in _NAMED_SCHEMAS and isinstance(inner, dict):
                    stack += [(f"{here}/{_escaped(name)}", v, base, depth) for name, v in inner.items()]
        return schemas[::-1]


def _escaped(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")


def _check_nesting(text: str, limits: Limits) -> None:
    """Brackets inside brackets, counted without a parser, so that none has to recurse into what is too deep."""
    deepest = min(limits.schema_depth * _NESTED_VALUES, 600)
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > deepest:
            raise exceeded("schema_depth", limits.schema_depth, "the schema", "deeper schemas")


def _refuse_constant(name: str) -> Any:
    raise UnsupportedConstraint("", "schema", f"{name} is not JSON")
