"""The queue of waiting jobs: by priority, then by arrival. Adding and removing cost O(1), a look what it looks at.

Knows order of arrival. Does not know which job should run next: that is a policy's business.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from palmette.runtime.request import AnyJob


class WaitingQueue:
    """Jobs by id, in levels of equal priority, the highest first."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, AnyJob]] = {}  # linked: a head that moves on leaves nothing behind
        self._order: list[int] = []  # negated priorities, ascending
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[AnyJob]:
        for negated in self._order:
            yield from self._levels[-negated].values()

    def append(self, job: AnyJob) -> None:
        self._level(job)[job.request_id] = job
        self._size += 1

    def push_front(self, job: AnyJob) -> None:
        """Before all of its priority: it was running already."""
        level = self._level(job)
        level[job.request_id] = job
        level.move_to_end(job.request_id, last=False)
        self._size += 1

    def remove(self, job: AnyJob) -> None:
        level = self._levels[job.priority]
        del level[job.request_id]
        self._size -= 1
        if not level:
            del self._levels[job.priority]
            self._order.remove(-job.priority)

    def windows(self, size: int) -> list[list[AnyJob]]:
        """The first `size` jobs, a list for each priority."""
        found: list[list[AnyJob]] = []
        for negated in self._order:
            if size <= 0:
                break
            window = list(islice(self._levels[-negated].values(), size))
            size -= len(window)
            found.append(window)
        return found

    def _level(self, job: AnyJob) -> OrderedDict[str, AnyJob]:
        level = self._levels.get(job.priority)
        if level is None:
            level = self._levels[job.priority] = OrderedDict()
            insort(self._order, -job.priority)
        return level
