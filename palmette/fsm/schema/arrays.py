"""Arrays of a schema: a fixed beginning, then equal items, counted.

Where items must differ or one of a kind is wanted, the few cases that are regular are written out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import EMPTY, NEVER, Node, alt, chain, either, is_never, repeat, seq
from palmette.fsm.limits import exceeded
from palmette.fsm.schema.enums import finite_values
from palmette.fsm.schema.flat import Conjunction, Flat
from palmette.fsm.schema.items import count_of, item_at, prefix_of
from palmette.fsm.schema.text import same_value, value_node

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder

MAX_DISTINCT = 10  # different values of an array whose items must be unique: 2**n nodes
MAX_CONTAINS = 64  # places at which the wanted item may stand, where the length is bounded


def array_node(builder: Builder, flat: Flat) -> Node:
    """The arrays that `flat` allows."""
    low, high, prefix = 0, None, 0
    unique_at = contains_at = None
    for place, view in flat.arrays:
        low = max(low, count_of(place, "minItems", view))
        if "maxItems" in view:
            most = count_of(place, "maxItems", view)
            high = most if high is None else min(high, most)
        prefix = max(prefix, len(prefix_of(builder, place, view)))
        if view.get("uniqueItems") is True:
            unique_at = place
        if "contains" in view and view.get("minContains", 1) != 0:
            if contains_at is not None or view.get("minContains", 1) != 1:
                raise UnsupportedConstraint(place, "contains", "only one contained item can be asked for")
            contains_at = builder.source.child(place, "contains")
    if low > builder.limits.repeat:
        raise exceeded("repeat", builder.limits.repeat, flat.arrays[0][0], f"minItems {low}")
    first = [item_at(builder, flat, i) for i in range(prefix)]
    rest = item_at(builder, flat, prefix)
    if rest is None:
        high = prefix if high is None else min(high, prefix)
    for i, conjunction in enumerate(first):
        if conjunction is None:
            high = i if high is None else min(high, i)
            break
    if high is not None and high < low:
        return NEVER
    first = first[:high]
    if unique_at is not None and (high is None or high > 1):
        body = _unique(builder, unique_at, first, rest, low, high)
    elif contains_at is not None:
        body = _containing(builder, contains_at, first, rest, low, high)
    else:
        nodes = [builder.rule_for(c) for c in first if c is not None]
        body = _sequence(builder, nodes, None if rest is None else builder.rule_for(rest), low, high)
    if is_never(body):
        return NEVER
    return seq(builder.punctuation.open_array, body, builder.punctuation.close_array)


def _sequence(builder: Builder, first: list[Node], rest: Node | None, low: int, high: int | None) -> Node:
    comma = builder.punctuation.comma
    n = len(first)
    more = None if high is None else high - n
    if rest is None or more == 0:
        body: Node = EMPTY
    elif n:
        body = repeat(seq(comma, rest), max(low - n, 0), more)
    else:
        body = seq(rest, repeat(seq(comma, rest), max(low - 1, 0), None if more is None else more - 1))
        if low == 0:
            body = alt([EMPTY, body])
    for i in reversed(range(n)):
        body = chain(comma, first[i], body) if i else chain(first[i], body)
        if i >= low:
            body = either(EMPTY, body)
    return body


def _unique(
    builder: Builder,
    place: str,
    first: list[Conjunction | None],
    rest: Conjunction | None,
    low: int,
    high: int | None,
) -> Node:
    """Items that differ, where they come from a short list: what is left depends on the set of values used."""
    values = None if rest is None or first else finite_values(builder, rest)
    if values is None or len(values) > MAX_DISTINCT:
        reason = f"only up to {MAX_DISTINCT} enumerated values can be kept apart"
        if builder.options.strict:
            raise UnsupportedConstraint(place, "uniqueItems", reason, "use an enum for the items, or remove it")
        builder.unenforced[f"{place} uniqueItems"] = None
        nodes = [builder.rule_for(c) for c in first if c is not None]
        return _sequence(builder, nodes, None if rest is None else builder.rule_for(rest), low, high)
    distinct: list[Any] = []
    for value in values:
        if not any(same_value(value, d) for d in distinct):
            distinct.append(value)
    texts = [value_node(v, builder.punctuation) for v in distinct]
    after: dict[int, Node] = {}  # by the set of values used, as bits
    for used in reversed(range(1 << len(texts))):
        count = used.bit_count()
        ways: list[Node] = [EMPTY] if count >= low else []
        if high is None or count < high:
            for i, text in enumerate(texts):
                if not used >> i & 1:
                    following = after[used | 1 << i]
                    ways.append(seq(builder.punctuation.comma, text, following) if count else seq(text, following))
        after[used] = alt(ways)
    return after[0]


def _containing(
    builder: Builder,
    place: str,
    first: list[Conjunction | None],
    rest: Conjunction | None,
    low: int,
    high: int | None,
) -> Node:
    """Arrays with an item at which the wanted schema holds too: one alternative for each position it may have."""
    if first or rest is None or (high is not None and high > MAX_CONTAINS) or low > MAX_CONTAINS:
        raise UnsupportedConstraint(place, "contains", "it stands beside prefixItems or large bounds", "simplify them")
    comma = builder.punctuation.comma
    item = builder.rule_for(rest)
    wanted = builder.rule_for(tuple(sorted({*rest, (place, ())})))
    before, after = seq(item, comma), seq(comma, item)
    if high is None and low <= 1:
        return seq(repeat(before, 0, None), wanted, repeat(after, 0, None))
    ways = []
    for position in range(high if high is not None else low):
        most = None if high is None else high - position - 1
        ways.append(seq(repeat(before, position, position), wanted, repeat(after, max(low - position - 1, 0), most)))
    if high is None:
        ways.append(seq(repeat(before, low, None), wanted, repeat(after, 0, None)))
    return alt(ways)
