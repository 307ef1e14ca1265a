"""What one compilation or one step may still spend. Shared by all automata of a constraint.

Knows counters and, when given one, a clock; raises the refusal that names the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from palmette.errors import UnsupportedConstraint
from palmette.fsm.limits import Limits, exceeded

_TICKS_PER_LOOK = 64  # a look at the clock costs as much as many ticks


class Budget:
    """Counts new automaton states against `limits`, per step and in total, and looks at `clock` (seconds) if any."""

    def __init__(self, limits: Limits, clock: Callable[[], float] | None = None, started: float | None = None) -> None:
        """`started`: what the clock said when compilation began; now, if not given."""
        self.limits = limits
        self._clock = clock
        if clock and started is None:
            started = clock()
        self._deadline = (started or 0.0) + limits.compile_seconds
        self._ticks = 0
        self._stepping = False  # compiling is bounded by the totals and the clock instead
        self.step = 0  # number of the step; 0 before the first
        self.states = 0
        self.subsets_in_step = 0
        self.members_in_step = 0

    def begin_step(self) -> None:
        """Start counting a new step. Compilation is over, so the clock is not looked at any more."""
        self._clock = None
        self._stepping = True
        self.step += 1
        self.subsets_in_step = 0
        self.members_in_step = 0

    @contextmanager
    def outside_step(self) -> Iterator[None]:
        """States made here count in total only: for work that bounds itself."""
        stepping, self._stepping = self._stepping, False
        try:
            yield
        finally:
            self._stepping = stepping

    def tick(self) -> None:
        """One turn of a loop of compilation."""
        self._ticks += 1
        if self._clock is not None and self._ticks % _TICKS_PER_LOOK == 0 and self._clock() > self._deadline:
            limit = self.limits.compile_seconds
            raise UnsupportedConstraint(
                "", "compile_seconds", f"compiling took longer than {limit} s", "simplify it or raise the limit"
            )

    def new_state(self, members: int) -> None:
        """A determinised state with `members` members. States of one member cannot explode: the NFA bounds them."""
        self.tick()
        self.states += 1
        if self.states > self.limits.dfa_states:
            raise exceeded("dfa_states", self.limits.dfa_states, "the automaton")
        if not self._stepping:
            return
        self.members_in_step += members
        if self.members_in_step > self.limits.members_per_step:
            raise exceeded("members_per_step", self.limits.members_per_step, "the automaton")
        if members > 1:
            self.subsets_in_step += 1
            if self.subsets_in_step > self.limits.dfa_states_per_step:
                raise exceeded("dfa_states_per_step", self.limits.dfa_states_per_step, "the automaton")
