"""Splitting a reasoning segment from the answer, while the text streams. The families' formats are data elsewhere."""

from __future__ import annotations

from enum import Enum, auto

from palmette.formats.reasoning import ReasoningFormat


class _Phase(Enum):
    START = auto()  # will there be reasoning?
    BEFORE_THOUGHT = auto()  # behind the opening mark: line breaks belong to it
    THOUGHT = auto()
    BEFORE_ANSWER = auto()  # behind the closing mark: line breaks, or exactly what the format says, belong to it
    ANSWER = auto()


class ReasoningSplitter:
    """Feeds on text as it comes and deals it out to (reasoning, answer); marks belong to neither."""

    def __init__(self, form: ReasoningFormat, *, inside: bool | None = None, exact: bool = False) -> None:
        """
        Args:
            inside: the text begins behind the opening mark; None = as its family usually does.
            exact: `form.after`, no more and no less, stands between the closing mark and the answer.
        """
        self._form = form
        self._inside = form.starts_inside if inside is None else inside
        self._after = len(form.after) if exact else None  # characters still to be passed over
        self._phase = _Phase.START
        self._held = ""  # could still become a mark

    def feed(self, text: str) -> tuple[str, str]:
        return self._deal(self._held + text, last=False)

    def finish(self) -> tuple[str, str]:
        """What was held back, when nothing more will come."""
        return self._deal(self._held, last=True)

    def _deal(self, text: str, *, last: bool) -> tuple[str, str]:
        self._held = ""
        begin, end = self._form.begin, self._form.end
        thought = ""
        if self._phase is _Phase.START:
            body = text.lstrip()
            if body.startswith(begin):  # a model may write it although its template did
                text, self._phase = body[len(begin) :], _Phase.BEFORE_THOUGHT
            elif begin.startswith(body) and not last:
                self._held = text
                return "", ""
            else:
                self._phase = _Phase.BEFORE_THOUGHT if self._inside else _Phase.ANSWER
        if self._phase is _Phase.BEFORE_THOUGHT:
            text = text.lstrip("\n")
            self._phase = _Phase.THOUGHT if text else self._phase
        if self._phase is _Phase.THOUGHT:
            thought, found, rest = text.partition(end)
            if not found:
                keep = 0 if last else _overlap(text, end)
                self._held = text[len(text) - keep :]
                return text[: len(text) - keep], ""
            text, self._phase = rest, _Phase.BEFORE_ANSWER
        if self._phase is _Phase.BEFORE_ANSWER:
            text = self._behind_mark(text)
        return thought, text

    def _behind_mark(self, text: str) -> str:
        if self._after is None:
            text = text.lstrip("\n")
            self._phase = _Phase.ANSWER if text else self._phase
            return text
        passed = min(self._after, len(text))
        self._after -= passed
        self._phase = self._phase if self._after else _Phase.ANSWER
        return text[passed:]


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that could begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
