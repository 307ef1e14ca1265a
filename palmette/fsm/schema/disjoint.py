"""Whether a conjunction of schemas has no value at all: how `oneOf` branches are shown to be disjoint.

Sound, not complete: True is a proof, False may only mean that the depth looked at was not enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from palmette.fsm.schema.enums import allows, excludes
from palmette.fsm.schema.flat import Conjunction, Flat
from palmette.fsm.schema.items import required_items
from palmette.fsm.schema.numeric import number_range_is_empty
from palmette.fsm.schema.objects import required_values
from palmette.fsm.schema.strings import body_machine, string_body
from palmette.fsm.trampoline import Call, run

if TYPE_CHECKING:
    from palmette.fsm.schema.build import Builder

MAX_DEPTH = 4  # values inside values
MAX_LOOKS = 400  # conjunctions looked at for one question


def is_impossible(builder: Builder, conjunction: Conjunction) -> bool:
    """True only if no value satisfies every element of `conjunction`."""
    looks = [MAX_LOOKS]
    return run(_impossible(builder, conjunction, MAX_DEPTH, looks))


def _impossible(builder: Builder, conjunction: Conjunction, depth: int, looks: list[int]) -> Call[bool]:
    looks[0] -= 1
    builder.budget.tick()
    if looks[0] < 0:
        return False
    flat = builder.flat(conjunction)
    if flat.never or not flat.types:
        return True
    for group in flat.groups:  # of one group all branches must be impossible
        if len(group.branches) > 32:
            continue
        for branch in group.branches:
            if not (yield _impossible(builder, flat.without(group, branch), depth, looks)):
                break
        else:
            return True
    if flat.enums:
        return not any(allows(builder, flat, v) for v in flat.enums[0][1])
    for kind in flat.types:
        if not (yield _kind_impossible(builder, kind, flat, depth, looks)):
            return False
    return True


def _kind_impossible(builder: Builder, kind: str, flat: Flat, depth: int, looks: list[int]) -> Call[bool]:
    if kind in ("null", "boolean", "number", "string"):
        return _scalar_impossible(builder, kind, flat)
    if depth == 0:
        return False
    if kind == "object":
        for conjunction in required_values(builder, flat):
            if conjunction is None or (yield _impossible(builder, conjunction, depth - 1, looks)):
                return True
        return False
    for conjunction in required_items(builder, flat):
        if conjunction is None or (yield _impossible(builder, conjunction, depth - 1, looks)):
            return True
    return False


def _scalar_impossible(builder: Builder, kind: str, flat: Flat) -> bool:
    if kind == "null":
        return excludes(flat, None)
    if kind == "boolean":
        return excludes(flat, True) and excludes(flat, False)
    if kind == "number":
        return number_range_is_empty(flat)
    if not flat.strings and not flat.excluded:
        return False
    return body_machine(builder, string_body(builder, flat)) is None
