"""Instances as the texts a constraint would have to write for them: canonical, keys in declaration order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from palmette.errors import UnsupportedConstraint
from palmette.fsm.limits import Limits
from palmette.fsm.numbers import plain_decimal
from palmette.fsm.schema.build import Builder
from palmette.fsm.schema.enums import holds
from palmette.fsm.schema.flat import Conjunction
from palmette.fsm.schema.items import item_at
from palmette.fsm.schema.objects import Shape
from palmette.fsm.schema.source import Source
from palmette.fsm.schema.text import number_text, same_value
from palmette.specs import SchemaOptions

MAX_ORDERS = 200


def texts(schema_text: str, instance: Any, options: SchemaOptions | None = None) -> list[str]:
    """The instance in every order of keys that some branch of the schema declares, and in its own."""
    builder = Builder(Source(schema_text, Limits()), options or SchemaOptions(), Limits(), None)
    orders = itertools.islice(_orders(builder, (("", ()),), instance, 40), MAX_ORDERS)
    whole = [plain_decimal(instance)] if isinstance(instance, Decimal) else []  # 1e308 as an integer is written out
    return list(dict.fromkeys([*orders, write(instance), *whole]))


def write(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write(k)}: {write(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(write(v) for v in value) + "]"
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return number_text(value)
    return json.dumps(value, ensure_ascii=False)


def _orders(builder: Builder, conjunction: Conjunction, value: Any, depth: int) -> Iterator[str]:
    """Candidate texts; the order is taken from the compiler's reading of the schema, the verdict never is."""
    if depth == 0 or not isinstance(value, dict | list):
        yield write(value)
        return
    try:
        flat = builder.flat(conjunction)
    except UnsupportedConstraint:
        yield write(value)
        return
    if flat.groups:
        branches = [flat.without(flat.groups[0], b) for b in flat.groups[0].branches]
        for branch in [b for b in branches if _may_hold(builder, b, value)] or branches:
            yield from _orders(builder, branch, value, depth)
        return
    if flat.enums and isinstance(value, dict):
        yield from (write(v) for v in flat.enums[0][1] if same_value(v, value))
    if isinstance(value, list):
        parts = [_few(builder, item_at(builder, flat, i) or (), v, depth) for i, v in enumerate(value)]
        for choice in itertools.islice(itertools.product(*parts), MAX_ORDERS):
            yield "[" + ", ".join(choice) + "]"
        return
    try:
        shape = Shape(builder, flat)
        keys = [k for k in shape.names if k in value] + [k for k in value if k not in shape.names]
        parts = [_few(builder, shape.conjunction_of(k) or (), value[k], depth) for k in keys]
    except UnsupportedConstraint:
        yield write(value)
        return
    for choice in itertools.islice(itertools.product(*parts), MAX_ORDERS):
        yield "{" + ", ".join(f"{write(k)}: {v}" for k, v in zip(keys, choice, strict=True)) + "}"


def _few(builder: Builder, conjunction: Conjunction, value: Any, depth: int) -> list[str]:
    return list(dict.fromkeys(itertools.islice(_orders(builder, conjunction, value, depth - 1), 8)))


def _may_hold(builder: Builder, conjunction: Conjunction, value: Any) -> bool:
    try:
        return holds(builder, conjunction, value)
    except UnsupportedConstraint:
        return True
