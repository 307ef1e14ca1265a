"""The sizes a constraint may have before it is refused, and how a refusal names them.

Knows numbers only. Every limit can be raised by passing another `Limits` to `compile`; the message of a refusal names
the limit, its value and the place that crossed it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from palmette.errors import InvalidOption, UnsupportedConstraint


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on the work one constraint may cause. All are inclusive."""

    spec_bytes: int = 256 * 1024  # UTF-8 bytes of the pattern, schema or grammar text
    regex_nesting: int = 200  # groups inside groups
    schema_depth: int = 64  # schemas inside schemas
    properties: int = 5_000  # of one object
    enum_values: int = 10_000  # of one enum, or of one list of choices
    repeat: int = 10_000  # one bound of one counted repeat
    repeat_product: int = 100_000  # product of the bounds of nested repeats
    nfa_states: int = 200_000  # partial derivatives alive in one automaton
    dfa_states: int = 50_000  # sets of them alive in one automaton
    dfa_states_per_step: int = 2_000  # new ones with more than one member that one token's mask may need
    members_per_step: int = 500_000  # members of all sets that one token's mask may need
    slow_compile_seconds: float = 2.0  # soft: a longer compilation is served, and logged as a warning
    compile_seconds: float = 4.5  # hard: checked inside the loops of compilation
    mask_cache_bytes: int = 256 << 20  # of one constraint
    cached_constraints: int = 512
    cached_bytes: int = 1 << 30  # of all cached constraints together, as far as they are counted

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise InvalidOption(field.name, value, "a number above 0")


def exceeded(limit: str, value: float, place: str, found: object = "more") -> UnsupportedConstraint:
    """The refusal for crossing `limit`; `found` is what the constraint asked for."""
    return UnsupportedConstraint(
        place, limit, f"it needs {found}, and the limit is {value}", f"simplify it, or compile with Limits({limit}=...)"
    )
