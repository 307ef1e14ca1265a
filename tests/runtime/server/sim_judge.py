"""Whether what became of one simulated request may be: what it was handed, how it failed, and when."""

from __future__ import annotations

from collections import Counter

from palmette.errors import (
    Cancelled,
    EngineDied,
    HoleTimeout,
    NumericalError,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
    UnsupportedConstraint,
)
from palmette.types import FinishReason, GenerateRequest, ScoreRequest
from tests.runtime.server.sim_golden import golden, golden_embedding, golden_scores, text_of
from tests.runtime.server.sim_world import EXPIRE_SECONDS, PATIENCE, SLACK, Violation, Visit, World


class Judge:
    """Whether what became of one request may be."""

    def __init__(self, world: World, visit: Visit, happened: Counter[str]) -> None:
        """
        Args:
            happened: counts what was seen, so that a test can tell that it was.
        """
        self._world, self._visit, self._happened = world, visit, happened

    def judge(self) -> None:
        """
        Raises:
            Violation: it may not.
        """
        visit = self._visit
        if not visit.outcome:
            self._fail("has no end")
        self._check_content()
        if visit.outcome == "answered":
            if visit.kind in ("stream", "whole"):
                self._happened[f"ended by {visit.finish.reason}" if visit.finish else "?"] += 1
            if visit.deaths:
                self._happened["survived a crash"] += 1
        elif visit.outcome == "left":
            if visit.leaves is None and not visit.is_sent_away:
                self._fail("was cancelled by nobody")
        else:
            assert visit.error is not None
            self._check_error(visit.error)
        self._check_time()

    def _check_content(self) -> None:
        """What was handed out is the golden stream, or a beginning of it."""
        visit = self._visit
        request, is_answered = visit.request, visit.outcome == "answered"
        if isinstance(request, GenerateRequest):
            expected = golden(request, self._world.kv_tokens)
            if is_answered:
                got = (tuple(visit.tokens), visit.text, visit.finish and visit.finish.reason)
                if got != (expected.tokens, expected.text, expected.reason):
                    self._fail(f"was answered {got}, and alone it is {expected}")
                finish = visit.finish
                assert finish is not None
                if text_of(list(finish.token_ids)) + finish.tail != visit.text:
                    self._fail(f"keeps {finish.token_ids} + {finish.tail!r} for {visit.text!r}")
                return
            if tuple(visit.tokens) != expected.tokens[: len(visit.tokens)]:
                self._fail(f"was handed {visit.tokens}, and alone it is {expected.tokens}")
            if not expected.uncut.startswith(visit.text):
                self._fail(f"was handed {visit.text!r}, and alone it is {expected.uncut!r}")
        elif is_answered:
            alone = golden_scores(request) if isinstance(request, ScoreRequest) else golden_embedding(request)
            if visit.values != alone:
                self._fail(f"was answered {visit.values}, and alone it is {alone}")
        # A connection that is lost after the last event was read has seen the end: only an error must not.
        reason = visit.finish.reason if visit.finish is not None else None
        if visit.error is not None and reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._fail(f"failed with {visit.error!r} and says {reason}")

    def _check_error(self, error: PalmetteError) -> None:
        visit, message = self._visit, str(error)
        begun = bool(visit.tokens)
        match error:
            case Overloaded():
                self._allow("short queue" in self._world.faults and 1 <= error.retry_after <= 60 and not begun)
            case Cancelled():
                self._allow(visit.is_aborted)
            case UnsupportedConstraint():
                self._allow(isinstance(visit.request, GenerateRequest) and visit.request.constraint is not None)
            case PromptTooLong():
                self._allow(len(visit.request.token_ids) >= 32)
            case NumericalError():
                self._allow("bad rows" in self._world.faults)
            case HoleTimeout() if "no turn" in message:
                limits = self._world.config.limits
                allowed = min(limits.queue_timeout, visit.request.timeout or PATIENCE)
                self._allow(allowed < PATIENCE and visit.ended >= visit.asked + allowed - SLACK and not begun)
            case HoleTimeout():
                timeout = visit.request.timeout
                self._allow(timeout is not None and visit.ended >= visit.asked + timeout - SLACK)
            case EngineDied() if begun:
                self._allow(visit.kind == "stream" and visit.deaths >= 1)
                self._happened["stream lost to a crash"] += 1
            case EngineDied():
                # A stream that has read no token may have read an event without one: forced or empty ones.
                self._allow(not visit.could_serve)
            case RequestError() if "twice" in message:
                self._allow(visit.deaths >= 2 and not begun)
                self._happened["poisoned"] += 1
            case RequestError() if "unread" in message:
                self._allow("slow" in self._world.faults and visit.kind == "stream")
                self._happened["slow reader ended"] += 1
            case _:
                self._allow(False)

    def _check_time(self) -> None:
        """Nobody outlives his deadline, whatever the engine does."""
        visit = self._visit
        if visit.request.timeout is None or visit.pause or not visit.ended:
            return
        late = visit.ended - (visit.asked + visit.request.timeout)
        if late > EXPIRE_SECONDS + SLACK:
            self._fail(f"ended {late:.2f} s after its deadline")

    def _allow(self, condition: bool) -> None:
        if not condition:
            self._fail(f"failed without a reason: {self._visit.error!r}")

    def _fail(self, what: str) -> None:
        visit = self._visit
        raise Violation(f"{visit.name} ({visit.kind}, {visit.deaths} deaths) {what}")
