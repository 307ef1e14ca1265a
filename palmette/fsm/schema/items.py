"""The array keywords of all schemas of a conjunction, looked up by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.schema.flat import Conjunction, Flat

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder


def item_at(builder: Builder, flat: Flat, index: int) -> Conjunction | None:
    """What the item at `index` must satisfy; None = there may be none."""
    out: list[tuple[str, tuple[str, ...]]] = []
    for place, view in flat.arrays:
        prefix = prefix_of(builder, place, view)
        if index < len(prefix):
            out.append((prefix[index], ()))
            continue
        keyword = "additionalItems" if isinstance(view.get("items"), list) else "items"
        if keyword in view:
            out.append((builder.source.child(place, keyword), ()))
    conjunction = tuple(sorted(set(out)))
    return None if builder.flat(conjunction).never else conjunction


def prefix_of(builder: Builder, place: str, view: dict[str, Any]) -> list[str]:
    keyword = "items" if isinstance(view.get("items"), list) else "prefixItems"
    value = view.get(keyword, [])
    if not isinstance(value, list):
        raise UnsupportedConstraint(place, keyword, "its value must be a list")
    return [builder.source.child(place, keyword, i) for i in range(len(value))]


def count_of(place: str, keyword: str, view: dict[str, Any]) -> int:
    value = view.get(keyword, 0)
    if isinstance(value, bool) or value != int(value) or value < 0:
        raise UnsupportedConstraint(place, keyword, "its value must be an integer of 0 or more")
    return int(value)


def required_items(builder: Builder, flat: Flat) -> list[Conjunction | None]:
    """What the items that must be there have to satisfy; None stands for an item that cannot be."""
    low = max((count_of(p, "minItems", v) for p, v in flat.arrays), default=0)
    highs = [count_of(p, "maxItems", v) for p, v in flat.arrays if "maxItems" in v]
    if highs and min(highs) < low:
        return [None]
    return [item_at(builder, flat, i) for i in range(min(low, 16))]
