"""One run of a program: what all its streams share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from palmette.errors import BudgetExceeded, Cancelled, InvalidOption, PalmetteError
from palmette.interpreter.budget import Budget, Purse
from palmette.interpreter.executor import Executor
from palmette.interpreter.hole import awaited
from palmette.interpreter.promise import Promise
from palmette.ir import HoleOptions, StreamPath
from palmette.types import Backend, ProgramEnded, Usage

if TYPE_CHECKING:  # a run lists its streams, a stream asks its run: types only
    from palmette.interpreter.stream import Stream

RolesMode: TypeAlias = Literal["strict", "rerender"]
MAX_BRANCHES = 100_000  # live branches of one program


@dataclass(frozen=True, slots=True)
class HoleRecord:
    """What one hole came to, for run records."""

    stream: StreamPath
    hole: int
    name: str | None
    sample: int
    token_ids: tuple[int, ...]
    text: str
    reason: str


class ProgramRun:
    """Options, seed, budget and usage of one program instance, and its live streams."""

    __slots__ = (
        "_clock",
        "backend",
        "body_error",
        "budget",
        "executor",
        "namespace",
        "options",
        "over",
        "program_id",
        "purse",
        "records",
        "ret_value",
        "roles",
        "seed",
        "span",
        "streams",
        "usage",
    )

    def __init__(
        self,
        executor: Executor,
        backend: Backend,
        *,
        seed: int,
        options: HoleOptions,
        budget: Budget | None = None,
        roles: RolesMode = "strict",
        namespace: str = "",
    ) -> None:
        if roles not in ("strict", "rerender"):
            raise InvalidOption("roles", roles, "'strict' or 'rerender'")
        self.executor = executor
        self.backend = backend
        self.seed = seed
        self.options = options
        self.roles = roles
        self.namespace = namespace
        self.program_id = executor.next_request_id()
        self.usage = _NO_USAGE
        self.records: list[HoleRecord] = []
        self.streams: dict[StreamPath, Stream] = {}
        self.ret_value: Any = None  # of the body
        self.span: Any = None  # of OpenTelemetry, see tracing.py
        self.body_error: BaseException | None = None
        self.over: Promise[None] = Promise()  # done when the body returned and every stream settled
        self.budget = budget or _NO_BUDGET
        self.purse = Purse(self.budget)
        self._clock: asyncio.TimerHandle | None = None
        executor.call(self._begin)

    @property
    def is_over(self) -> bool:
        return self.over.done()

    @property
    def failure(self) -> Exception | None:
        """What whoever still waits for something of this run is told; None while nothing is wrong."""
        error = self.body_error
        if error is None or isinstance(error, Exception):
            return error or self.streams[()].error
        return Cancelled(f"the program was interrupted by {error!r}")

    def _begin(self) -> None:
        self.executor.live.add(self)
        if self.budget.seconds is not None:
            error = BudgetExceeded(f"the run's budget of {self.budget.seconds} s is used up")
            self._clock = self.executor.loop.call_later(self.budget.seconds, self.cancel, error)

    # -- on the loop --

    def cancel(self, error: PalmetteError) -> None:
        """Fail every stream and abort what is in flight."""
        for stream in list(self.streams.values()):
            stream.fail(error)

    async def settle(self) -> None:
        """Wait until every stream has executed all that was appended to it."""
        waited: set[StreamPath] = set()
        while new := [s for path, s in self.streams.items() if path not in waited]:
            waited.update(s.path for s in new)
            await asyncio.gather(*(awaited(s.barrier()) for s in new))

    def finish(self) -> None:
        """Nothing more will come: tell the backend, forget the clock."""
        if self.is_over:
            return
        if self._clock is not None:
            self._clock.cancel()
        self.executor.live.discard(self)
        try:
            self.backend.notify(ProgramEnded(self.program_id))
        finally:
            self.over.set_result(None)
            for stream in list(self.streams.values()):
                stream.end("its program is over")
                stream.give_up_names()
                stream.transcript.close(self.failure if not stream.path else stream.error)

    def count(self, usage: Usage) -> None:
        self.usage = self.usage + usage

    def record_json(self) -> list[dict[str, Any]]:
        """The holes in an order that does not depend on timing."""
        ordered = sorted(self.records, key=lambda r: (r.stream, r.hole, r.sample))
        return [
            {
                "stream": list(r.stream),
                "hole": r.hole,
                "name": r.name,
                "sample": r.sample,
                "token_ids": list(r.token_ids),
                "text": r.text,
                "reason": r.reason,
            }
            for r in ordered
        ]


_NO_BUDGET, _NO_USAGE = Budget(), Usage()  # frozen: one for all runs
