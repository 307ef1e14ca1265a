"""When live jobs run out of time. Knows deadlines; what becomes of a job is the scheduler's business."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from palmette.runtime.request import AnyJob, Status


class Deadlines:
    """A heap of deadlines. A job that ended is forgotten lazily, long before its time would have been up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, AnyJob]] = []
        self._limit = 64  # entries at which the ended are swept out

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, job: AnyJob) -> None:
        if job.deadline is None:
            return
        if len(self._heap) >= self._limit:
            self._heap = [entry for entry in self._heap if entry[2].status is not Status.FINISHED]
            heapify(self._heap)
            self._limit = max(64, 2 * len(self._heap))  # so a sweep costs O(1) for each job added since the last
        heappush(self._heap, (job.deadline, job.number, job))

    def expired(self, now: float) -> list[AnyJob]:
        """The live jobs whose time is up, each once."""
        jobs: list[AnyJob] = []
        while self._heap and self._heap[0][0] <= now:
            _, _, job = heappop(self._heap)
            if job.status is not Status.FINISHED:
                jobs.append(job)
        return jobs
