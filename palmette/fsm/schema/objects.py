"""Objects of a schema: declared properties in their order, then further required ones, then additional ones.

Optional properties cost one node each for every value of a counter; the counter is one bit (is a comma needed?) unless
the number of properties is bounded in a way that the declaration does not already settle. The names that may come next
are one trie (`Keyed`), which those of later places share.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import (
    ANY_TEXT,
    EMPTY,
    NEVER,
    And,
    Keyed,
    Node,
    Not,
    Words,
    alt,
    chain,
    either,
    is_never,
    repeat,
    seq,
)
from palmette.fsm.dfa import Machine, matches
from palmette.fsm.limits import exceeded
from palmette.fsm.schema.flat import Conjunction, Flat
from palmette.fsm.schema.strings import body_machine, may_overlap, pattern_matches, pattern_node, string_body
from palmette.fsm.schema.text import string

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder

MAX_PATTERNS = 4  # patternProperties of one object that may overlap
MAX_COUNTED = 200_000  # properties times counts


def object_node(builder: Builder, flat: Flat) -> Node:
    """The objects that `flat` allows."""
    shape = Shape(builder, flat)
    low, high = shape.low, shape.high
    names = shape.names
    if len(names) > builder.limits.properties:
        raise exceeded("properties", builder.limits.properties, flat.objects[0][0], f"{len(names)} properties")
    members: list[tuple[str, Node, bool]] = []  # name, what follows it, whether it is required
    punctuation = builder.punctuation
    for name in names:
        builder.budget.tick()
        required = name in shape.required
        value = shape.value_of(name)
        if value is None:
            if required:
                return NEVER
            continue
        members.append((name, seq(punctuation.colon, value), required))
    extra = shape.additional()
    needed = sum(required for _, _, required in members)
    if low <= needed:
        low = 0
    if high is not None and is_never(extra) and high >= len(members):
        high = None
    if high is not None and high < needed:
        return NEVER
    body = _members(builder, flat, members, extra, low, high)
    return body if is_never(body) else seq(punctuation.open_object, body, punctuation.close_object)


def _members(
    builder: Builder, flat: Flat, members: list[tuple[str, Node, bool]], extra: Node, low: int, high: int | None
) -> Node:
    """From the last member to the first, per number of members written before (top = so many or more).

    ends[c]: the ways to go on without another declared member; next_members[c]: those with one, without the comma.
    """
    top = max(low, high + 1 if high is not None else 0, 1)
    if (top > 1 and top * (len(members) + 1) > MAX_COUNTED) or low > builder.limits.repeat:
        keyword = "minProperties" if low else "maxProperties"
        raise UnsupportedConstraint(flat.objects[0][0], keyword, f"counting {len(members)} properties takes too much")
    comma = builder.punctuation.comma
    ends: list[Node] = []
    for count in range(top + 1):
        if high is not None and count > high:
            ends.append(NEVER)
            continue
        more = None if high is None else high - count
        least = max(low - count, 0)
        if is_never(extra) or more == 0:
            ends.append(EMPTY if least == 0 else NEVER)
        elif count:
            ends.append(repeat(seq(comma, extra), least, more))
        else:
            rest = repeat(seq(comma, extra), max(least - 1, 0), None if more is None else more - 1)
            some = seq(extra, rest)
            ends.append(some if least else alt([EMPTY, some]))
    next_members: list[Node] = [NEVER] * (top + 1)
    for i in range(len(members) - 1, -1, -1):
        builder.budget.tick()
        name, then, required = members[i]
        following = next_members
        next_members = []
        after = [_row(comma, count, ends, following) for count in range(min(i + 1, top) + 1)]
        if required:
            ends = [NEVER] * (top + 1)
        for count in range(min(i, top) + 1):
            if count == top and high is None:  # one more member than top - 1 counts the same
                next_members.append(next_members[-1])
                continue
            others = NEVER if required else following[count]
            if high is None or count < high:
                others = Keyed(name, chain(then, after[min(count + 1, top)]), others)
            next_members.append(others)
    return _row(comma, 0, ends, next_members)


def _row(comma: Node, count: int, ends: list[Node], next_members: list[Node]) -> Node:
    """What may follow when `count` members were written."""
    some = next_members[count]
    return either(ends[count], chain(comma, some) if count else some)


class Shape:
    """The object keywords of all schemas of a conjunction, looked up by property name."""

    def __init__(self, builder: Builder, flat: Flat) -> None:
        self.builder = builder
        self.views = flat.objects
        self.low, self.high = 0, None
        names: dict[str, None] = {}
        required: dict[str, None] = {}
        self.patterns: dict[str, None] = {}
        self.name_schemas: list[str] = []
        for place, view in self.views:
            for keyword in ("properties", "patternProperties"):
                if not isinstance(view.get(keyword, {}), dict):
                    raise UnsupportedConstraint(place, keyword, "its value must be an object")
            names.update(dict.fromkeys(view.get("properties", {})))
            self.patterns.update(dict.fromkeys(view.get("patternProperties", {})))
            wanted = view.get("required", [])
            if isinstance(wanted, list) and not all(isinstance(name, str) for name in wanted):
                raise UnsupportedConstraint(place, "required", "its value must be a list of names")
            required.update(dict.fromkeys(wanted if isinstance(wanted, list) else []))
            self.low = max(self.low, _count(place, "minProperties", view, 0))
            if "maxProperties" in view:
                most = _count(place, "maxProperties", view, 0)
                self.high = most if self.high is None else min(self.high, most)
            if "propertyNames" in view:
                self.name_schemas.append(builder.source.child(place, "propertyNames"))
        for name in (*names, *required):
            if not isinstance(name, str) or any(0xD800 <= ord(c) <= 0xDFFF for c in name):
                raise UnsupportedConstraint(self.views[0][0], "required", f"{name!r:.40} is not a property name")
        self.required = required
        self.names = dict.fromkeys((*names, *required))
        self._name_machine: list[Machine | None] = []

    def conjunction_of(self, name: str) -> Conjunction | None:
        """What the value of this property must satisfy; None = the property may not be there."""
        if self.name_schemas and not self._name_is_allowed(name):
            return None
        out: list[tuple[str, tuple[str, ...]]] = []
        for place, view in self.views:
            found = []
            if name in view.get("properties", {}):
                found.append(self.builder.source.child(place, "properties", name))
            for pattern in view.get("patternProperties", {}):
                if pattern_matches(self.builder, place, pattern, name):
                    found.append(self.builder.source.child(place, "patternProperties", pattern))
            if not found and "additionalProperties" in view:
                found.append(self.builder.source.child(place, "additionalProperties"))
            out += [(f, ()) for f in found]
        return self._possible(out)

    def value_of(self, name: str) -> Node | None:
        conjunction = self.conjunction_of(name)
        return None if conjunction is None else self.builder.rule_for(conjunction)

    def additional(self) -> Node:
        """One member with a name that is not declared; names are told apart by the patterns they match."""
        if self.high == 0:
            return NEVER
        out: list[Node] = []
        patterns = list(self.patterns)
        for matched in self._combinations(patterns):
            conjunction = self._conjunction_matching(matched)
            if conjunction is None:
                continue
            names = self._names_matching(matched, patterns)
            colon = self.builder.punctuation.colon
            out.append(seq(string(names), colon, self.builder.rule_for(conjunction)))
        return alt(out)

    def _combinations(self, patterns: list[str]) -> list[frozenset[str]]:
        sets = [frozenset[str](), *(frozenset([p]) for p in patterns)]
        if len(patterns) <= MAX_PATTERNS:
            return [frozenset(c) for n in range(len(patterns) + 1) for c in combinations(patterns, n)]
        for one, two in combinations(patterns, 2):
            if may_overlap(self.builder, self.views[0][0], one, two):
                reason = f"{one!r} and {two!r} may match the same name"
                raise UnsupportedConstraint(self.views[0][0], "patternProperties", reason, "make the patterns disjoint")
        return sets

    def _conjunction_matching(self, matched: frozenset[str]) -> Conjunction | None:
        out: list[tuple[str, tuple[str, ...]]] = []
        for place, view in self.views:
            found = [
                self.builder.source.child(place, "patternProperties", p)
                for p in view.get("patternProperties", {})
                if p in matched
            ]
            if not found and "additionalProperties" in view:
                found.append(self.builder.source.child(place, "additionalProperties"))
            out += [(f, ()) for f in found]
        return self._possible(out)

    def _names_matching(self, matched: frozenset[str], patterns: list[str]) -> Node:
        parts: list[Node] = []
        place = self.views[0][0] if self.views else ""
        for pattern in patterns:
            node = pattern_node(self.builder, place, pattern)
            if pattern in matched:
                parts.append(node)
            elif len(patterns) <= MAX_PATTERNS or not matched:
                parts.append(Not(node))
        if self.names:
            parts.append(Not(Words(tuple(self.names))))
        if self.name_schemas:
            parts.append(self._names_body())
        if not parts:
            return ANY_TEXT
        return And((ANY_TEXT, *parts))

    def _names_body(self) -> Node:
        conjunction = tuple((p, ()) for p in self.name_schemas)
        flat = self.builder.flat(conjunction)
        if flat.groups:
            keyword = flat.groups[0].keyword
            raise UnsupportedConstraint(self.name_schemas[0], "propertyNames", f"{keyword} is not supported here")
        if flat.never or "string" not in flat.types:
            return NEVER
        listed = [Words(tuple(v for v in values if isinstance(v, str))) for _, values in flat.enums]
        if any(not words.texts for words in listed):
            return NEVER
        return And((string_body(self.builder, flat), *listed))

    def _name_is_allowed(self, name: str) -> bool:
        if not self._name_machine:
            body = self._names_body()
            self._name_machine = [body_machine(self.builder, body)]
        machine = self._name_machine[0]
        return machine is not None and matches(machine, name.encode())

    def _possible(self, elements: list[tuple[str, tuple[str, ...]]]) -> Conjunction | None:
        conjunction = tuple(sorted(set(elements)))
        return None if self.builder.flat(conjunction).never else conjunction


def _count(place: str, keyword: str, view: dict[str, Any], default: int) -> int:
    value = view.get(keyword, default)
    if isinstance(value, bool) or value != int(value) or value < 0:
        raise UnsupportedConstraint(place, keyword, "its value must be an integer of 0 or more")
    return int(value)


def required_values(builder: Builder, flat: Flat) -> list[Conjunction | None]:
    """What the values of the required properties have to satisfy; None stands for one that cannot be."""
    shape = Shape(builder, flat)
    if shape.high is not None and shape.high < len(shape.required):
        return [None]
    return [shape.conjunction_of(name) for name in shape.required]
