"""Tokens that a step computes before anybody knows them: those drawn by the step before it.

    step t draws      tokens = ops.sample(...)          Later[list[int]]
                      keep(rows, tokens)                row of the page table -> its token, still on its way
    step t + 1 has    ScheduledRow(row, (DRAWN,), ...)  "the token drawn last for this row"

A runner on a device keeps the tokens there and looks them up itself. Where everything is computed by the CPU, this is
how: a token is asked for when the row that needs it is packed. Knows rows of the page table; no jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from palmette.runtime.later import Later
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow

DRAWN = -1  # the only one of a row's token_ids: the token drawn last for its row of the page table


class Drawn:
    """The token drawn last for each row of a page table."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Later[list[int]], int]] = {}  # row -> tokens, place among them

    def keep(self, rows: Sequence[int], tokens: Later[list[int]]) -> None:
        """tokens[i] was drawn for page-table row rows[i]."""
        for place, row in enumerate(rows):
            self._kept[row] = (tokens, place)

    def resolve(self, batch: ScheduledBatch) -> ScheduledBatch:
        """The same with known tokens; waits for those that are still on their way."""
        if all(row.token_ids != _UNKNOWN for row in batch.rows):
            return batch
        return ScheduledBatch(tuple(self._known(row) for row in batch.rows))

    def _known(self, row: ScheduledRow) -> ScheduledRow:
        if row.token_ids != _UNKNOWN:
            return row
        tokens, place = self._kept[row.row]
        return replace(row, token_ids=(tokens.get()[place],))


_UNKNOWN = (DRAWN,)
