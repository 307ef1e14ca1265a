"""Tokens that are on their way when the next step is scheduled."""

from __future__ import annotations

import pytest

from palmette.runtime.drawn import DRAWN, Drawn
from palmette.runtime.later import Deferred, Now
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow


def row(number: int, *token_ids: int) -> ScheduledRow:
    return ScheduledRow(number, token_ids, 5, tuple(range(len(token_ids))), None, 0)


def test_a_row_gets_the_token_drawn_last_for_it() -> None:
    drawn = Drawn()
    drawn.keep([3, 1], Now([30, 10]))
    drawn.keep([1], Now([11]))
    found = drawn.resolve(ScheduledBatch((row(1, DRAWN), row(2, 7, 8), row(3, DRAWN))))
    assert found.rows == (row(1, 11), row(2, 7, 8), row(3, 30))


def test_a_token_is_asked_for_when_a_row_needs_it() -> None:
    asked: list[int] = []

    def make() -> list[int]:
        asked.append(1)
        return [4]

    drawn = Drawn()
    drawn.keep([0], Deferred(make))
    known = ScheduledBatch((row(0, 9),))
    assert drawn.resolve(known) is known
    assert not asked
    assert drawn.resolve(ScheduledBatch((row(0, DRAWN),))).rows == (row(0, 4),)
    assert asked == [1]


def test_a_row_for_which_nothing_was_drawn_is_an_error() -> None:
    with pytest.raises(KeyError):
        Drawn().resolve(ScheduledBatch((row(0, DRAWN),)))
