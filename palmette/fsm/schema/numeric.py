"""Numbers of a schema: bounds and multiples of all its parts put together."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.algebra import Node
from palmette.fsm.numbers import number_language
from palmette.fsm.schema.flat import Flat

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder


def _bounds(flat: Flat) -> dict[str, Any]:
    """The keywords for numbers as arguments of number_language."""
    low = high = None
    low_open = high_open = False
    multiples: list[Decimal] = []
    not_multiples: list[Decimal] = []
    for place, keyword, value in flat.numbers:
        if keyword in ("multipleOf", "~notMultipleOf"):
            if value <= 0:
                raise UnsupportedConstraint(place, "multipleOf", "its value must be above 0")
            (multiples if keyword == "multipleOf" else not_multiples).append(value)
            continue
        is_open = keyword.startswith("exclusive")
        if keyword.endswith("inimum"):
            if low is None or value > low or (value == low and is_open):
                low, low_open = value, is_open
        elif high is None or value < high or (value == high and is_open):
            high, high_open = value, is_open
    excluded = tuple(
        Decimal(v) for _, vs in flat.excluded for v in vs if isinstance(v, int | Decimal) and not isinstance(v, bool)
    )
    return {
        "low": low, "low_open": low_open, "high": high, "high_open": high_open, "multiples": tuple(multiples),
        "not_multiples": tuple(not_multiples), "excluded": excluded,
    }  # fmt: skip


def number_node(builder: Builder, flat: Flat) -> Node:
    """The numbers that `flat` allows."""
    bounds = _bounds(flat)
    key = (flat.integer, *bounds.values())
    found = builder.number_nodes.get(key)
    if found is not None:
        return found
    try:
        found = builder.number_nodes[key] = number_language(integer=flat.integer, **bounds)
    except UnsupportedConstraint as error:
        place = next((p for p, keyword, _ in flat.numbers if keyword == error.keyword), "")
        raise UnsupportedConstraint(place, error.keyword, error.reason, error.hint) from None
    return found


def number_holds(flat: Flat, value: Decimal) -> bool:
    """Whether the keywords for numbers hold for `value`."""
    b = _bounds(flat)
    if flat.integer and value != value.to_integral_value():
        return False
    if b["low"] is not None and (value < b["low"] or (b["low_open"] and value == b["low"])):
        return False
    if b["high"] is not None and (value > b["high"] or (b["high_open"] and value == b["high"])):
        return False
    return all(value % m == 0 for m in b["multiples"]) and not any(value % m == 0 for m in b["not_multiples"])


def number_range_is_empty(flat: Flat) -> bool:
    b = _bounds(flat)
    if b["low"] is None or b["high"] is None:
        return False
    return bool(b["low"] > b["high"] or (b["low"] == b["high"] and (b["low_open"] or b["high_open"])))
