"""Transition rows of a machine as one numpy table, filled as states are reached.

rows[state, byte] = next state, 0 = dead end, UNKNOWN = this row was not asked for yet
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from palmette.fsm.dfa import Machine

UNKNOWN = -1
_FIRST_ROWS = 256


class Table:
    """Row 0, the dead state's, is all dead. `rows` moves when the table grows: read it anew after `fill`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.rows: npt.NDArray[np.int32] = np.full((_FIRST_ROWS, 256), UNKNOWN, np.int32)
        self.rows[0] = 0
        self._filled = 1

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def fill(self, state: int) -> None:
        """Make the row of `state`."""
        segments = self.machine.segments(state)
        if state >= len(self.rows):
            grown = np.full((max(len(self.rows) * 2, state + 1), 256), UNKNOWN, np.int32)
            grown[: len(self.rows)] = self.rows
            self.rows = grown
        row = self.rows[state]
        row.fill(0)
        for low, high, to in segments:
            row[low : high + 1] = to

    def next(self, state: int, byte: int) -> int:
        """One entry, its row made if need be."""
        if state >= len(self.rows) or (to := self.rows.item(state, byte)) == UNKNOWN:
            self.fill(state)
            to = self.rows.item(state, byte)
        return to

    def require(self, states: npt.NDArray[np.int32]) -> None:
        """Fill the rows of `states` that are missing."""
        for state in dict.fromkeys(states.tolist()):
            if state >= len(self.rows) or self.rows[state, 0] == UNKNOWN:
                self.fill(state)
