"""The full system and what is taken from it, as data: the ablations of the paper (section 6.3), also all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Variant:
    """Options of a Runtime, and whether tasks wait for each other."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    one_at_a_time: bool = False  # a task starts when the one before it has ended
    needs_constraints: bool = False  # says nothing of a workload without any

    def applies_to(self, *, is_constrained: bool) -> bool:
        return is_constrained or not self.needs_constraints


FULL = "full"
BASELINE = "baseline"
_ALONE = {"max_running": 1}  # branches of a fork wait for each other too

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(FULL),
        Variant("no cache", {"enabled": False}),
        Variant("fcfs", {"policy": "fcfs"}),
        Variant("random", {"policy": "random"}),
        Variant("no hints", {"hints": False}),
        Variant("sequential", _ALONE, one_at_a_time=True),
        Variant("no jumps", {"jump_forward": False}, needs_constraints=True),
        # What a script does that sends one request after the other to an engine without a prefix cache.
        Variant(BASELINE, {"enabled": False, "policy": "fcfs", **_ALONE}, one_at_a_time=True),
        # The paper's latency: one program in the machine at a time, its branches side by side. Run when asked for.
        Variant("one program", one_at_a_time=True),
    )
}
DEFAULT = tuple(name for name in VARIANTS if name != "one program")
