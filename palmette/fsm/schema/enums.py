"""Enumerated values of a schema beside its other keywords, and kinds of values."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.schema.flat import Conjunction, Flat
from palmette.fsm.schema.numeric import number_holds
from palmette.fsm.schema.strings import holds_for
from palmette.fsm.schema.text import same_value

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder


def allows(builder: Builder, flat: Flat, value: Any) -> bool:
    """Whether the other keywords beside `enum` hold for one of its values."""
    kind = kind_of(value)
    if kind not in flat.types or excludes(flat, value):
        return False
    if any(not any(same_value(value, v) for v in values) for _, values in flat.enums[1:]):
        return False
    if kind == "number":
        return number_holds(flat, Decimal(value))
    if kind == "string":
        return holds_for(builder, flat, value)
    views = flat.objects if kind == "object" else flat.arrays
    if views:
        reason = f"an {kind} in an enum beside keywords for {kind}s is not compared with them"
        raise UnsupportedConstraint(views[0][0], "enum", reason, "leave only the values that satisfy the rest")
    return True


def finite_values(builder: Builder, conjunction: Conjunction) -> list[Any] | None:
    """The values of a conjunction that lists them; None for any other."""
    flat = builder.flat(conjunction)
    if flat.never:
        return []
    if flat.groups or not flat.enums:
        return None
    return [v for v in flat.enums[0][1] if allows(builder, flat, v)]


def kind_of(value: Any) -> str:
    """The JSON type of a value, integers being numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "number"


def excludes(flat: Flat, value: Any) -> bool:
    return any(same_value(value, v) for _, values in flat.excluded for v in values)
