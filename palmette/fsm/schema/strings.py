"""Strings of a schema: length in code points, `pattern` by search, `format`, and texts left out."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import ANY_CHAR, ANY_TEXT, NEVER, And, Language, Node, Not, Words, is_never, repeat
from palmette.fsm.budget import Budget
from palmette.fsm.dfa import Machine, matches
from palmette.fsm.limits import Limits, exceeded
from palmette.fsm.lower import Lowering
from palmette.fsm.parse import parse_regex
from palmette.fsm.schema.flat import Flat
from palmette.fsm.schema.formats import FORMATS, KNOWN_OPEN
from palmette.fsm.schema.text import string
from palmette.fsm.sizes import length_range

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder


def string_node(builder: Builder, flat: Flat) -> Node:
    """The JSON strings that `flat` allows."""
    body = string_body(builder, flat)
    return body if is_never(body) else string(body)


def string_body(builder: Builder, flat: Flat) -> Node:
    """The values of those strings, as texts."""
    low, high = 0, None
    parts: list[Node] = []
    for place, keyword, value in flat.strings:
        if keyword in ("minLength", "maxLength"):
            if isinstance(value, bool) or value != int(value) or value < 0:
                raise UnsupportedConstraint(place, keyword, "its value must be an integer of 0 or more")
            if keyword == "minLength":
                if value > builder.limits.repeat:
                    raise exceeded("repeat", builder.limits.repeat, place, f"minLength {value}")
                low = max(low, int(value))
            else:
                high = int(value) if high is None else min(high, int(value))
        elif keyword in ("format", "~notFormat"):
            node = _format(builder, place, value)
            if keyword == "~notFormat":
                parts.append(NEVER if node is None else Not(node))
            elif node is not None:
                parts.append(node)
        else:
            pattern = pattern_node(builder, place, value)
            parts.append(Not(pattern) if keyword == "~notPattern" else pattern)
    if (high is not None and low > high) or any(is_never(p) for p in parts):
        return NEVER
    excluded = [v for _, values in flat.excluded for v in values if isinstance(v, str)]
    if excluded:
        parts.append(Not(Words(tuple(excluded))))
    shortest, longest = length_range(parts)
    if low > shortest or (high is not None and (longest is None or high < longest)):
        parts.insert(0, repeat(ANY_CHAR, low, high))
    if not parts:
        return ANY_TEXT
    return parts[0] if len(parts) == 1 and not isinstance(parts[0], Not) else And(tuple(parts))


def holds_for(builder: Builder, flat: Flat, text: str) -> bool:
    """Whether the keywords for strings hold for `text`."""
    if not flat.strings:
        return True
    machine = body_machine(builder, string_body(builder, flat))
    return machine is not None and matches(machine, text.encode("utf-8", "surrogatepass"))


def body_machine(builder: Builder, body: Node) -> Machine | None:
    """The automaton of a body; None where it holds no text."""
    if is_never(body):
        return None
    try:
        return Lowering(Budget(builder.limits)).automaton(Language(body, {}))
    except UnsupportedConstraint as error:
        if error.keyword == "empty language":
            return None
        raise


def pattern_node(builder: Builder, place: str, pattern: Any) -> Node:
    """The texts in which `pattern` is found."""
    if not isinstance(pattern, str):
        raise UnsupportedConstraint(place, "pattern", "its value must be a string")
    found = builder.patterns.get(pattern)
    if found is None:
        try:
            found = builder.patterns[pattern] = parse_regex(pattern, builder.limits, search=True, ecma=True)
        except UnsupportedConstraint as error:
            reason = f"in its regex, at {error.path}, {error.keyword}: {error.reason}"
            raise UnsupportedConstraint(place, "pattern", reason, error.hint) from None
    return found


def _format(builder: Builder, place: str, name: Any) -> Node | None:
    """None for a format that is an annotation here; it is then listed as unenforced."""
    if not isinstance(name, str) or name not in FORMATS or not builder.options.assert_formats:
        if name in KNOWN_OPEN and builder.options.assert_formats and builder.options.strict:
            raise UnsupportedConstraint(place, "format", f"{name} has no automaton here", "use pattern")
        builder.unenforced[f"{place} format={name}"] = None
        return None
    key = "~format " + name
    found = builder.patterns.get(key)
    if found is None:
        found = builder.patterns[key] = _format_node(name, builder.limits)
    return found


@lru_cache(maxsize=64)
def _format_node(name: str, limits: Limits) -> Node:
    return parse_regex(FORMATS[name], limits)


def pattern_matches(builder: Builder, place: str, pattern: str, text: str) -> bool:
    """Whether `pattern` is found in `text`."""
    machine = _pattern_machine(builder, place, pattern)
    return machine is not None and matches(machine, text.encode("utf-8", "surrogatepass"))


def may_overlap(builder: Builder, place: str, one: str, two: str) -> bool:
    """Whether some text is found by both patterns."""
    both = And((pattern_node(builder, place, one), pattern_node(builder, place, two)))
    return body_machine(builder, both) is not None


def _pattern_machine(builder: Builder, place: str, pattern: str) -> Machine | None:
    if pattern not in builder.pattern_machines:
        builder.pattern_machines[pattern] = body_machine(builder, pattern_node(builder, place, pattern))
    return builder.pattern_machines[pattern]
