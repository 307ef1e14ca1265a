"""Enumerated values of a schema beside its other keywords, and kinds of values."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.schema.flat import Conjunction, Flat
from palmette.fsm.schema.items import item_at
from palmette.fsm.schema.numeric import number_holds
from palmette.fsm.schema.objects import Shape
from palmette.fsm.schema.strings import holds_for
from palmette.fsm.schema.text import kind_of, same_value
from palmette.fsm.trampoline import Call, run

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder


def allows(builder: Builder, flat: Flat, value: Any) -> bool:
    """Whether the keywords of `flat` other than its first enum hold for one of that enum's values.

    Raises:
        UnsupportedConstraint: they include alternatives or counts that are not evaluated on values.
    """
    if type(value) is str and not (flat.never or flat.excluded or flat.enums[1:] or flat.groups or flat.strings):
        return "string" in flat.types
    return run(_holds(builder, flat, value, skip_enums=1))


def holds(builder: Builder, conjunction: Conjunction, value: Any) -> bool:
    """Whether `value` satisfies a conjunction.

    Raises:
        UnsupportedConstraint: as for `allows`.
    """
    return run(_holds(builder, builder.flat(conjunction), value))


def _holds(builder: Builder, flat: Flat, value: Any, *, skip_enums: int = 0) -> Call[bool]:
    kind = kind_of(value)
    if flat.never or kind not in flat.types or excludes(flat, value):
        return False
    if any(not any(same_value(value, v) for v in values) for _, values in flat.enums[skip_enums:]):
        return False
    for group in flat.groups:
        results = []
        for branch in group.branches:
            results.append((yield _holds(builder, builder.flat(((branch, ()),)), value)))
        if not any(results) or (group.exclusive and sum(results) > 1):
            return False
    if kind == "number":
        return number_holds(flat, Decimal(value))
    if kind == "string":
        return holds_for(builder, flat, value)
    if kind == "object" and flat.objects:
        shape = Shape(builder, flat)
        if not shape.low <= len(value) <= (len(value) if shape.high is None else shape.high):
            return False
        if any(name not in value for name in shape.required):
            return False
        inner = [(shape.conjunction_of(name), v) for name, v in value.items()]
    elif kind == "array" and flat.arrays:
        for place, view in flat.arrays:
            if not view.get("minItems", 0) <= len(value) <= view.get("maxItems", len(value)):
                return False
            if "contains" in view or view.get("uniqueItems"):
                keyword = "contains" if "contains" in view else "uniqueItems"
                raise UnsupportedConstraint(place, keyword, "it is not compared with the values of an enum")
        inner = [(item_at(builder, flat, i), v) for i, v in enumerate(value)]
    else:
        return True
    for conjunction, v in inner:
        if conjunction is None or not (yield _holds(builder, builder.flat(conjunction), v)):
            return False
    return True


def finite_values(builder: Builder, conjunction: Conjunction) -> list[Any] | None:
    """The values of a conjunction that lists them; None for any other."""
    flat = builder.flat(conjunction)
    if flat.never:
        return []
    if flat.groups or not flat.enums:
        return None
    return [v for v in flat.enums[0][1] if allows(builder, flat, v)]


def excludes(flat: Flat, value: Any) -> bool:
    return any(same_value(value, v) for _, values in flat.excluded for v in values)
