"""Splitting a reasoning segment from the answer, while the text streams.

The formats of the model families are data. Model names are those of SGLang's `separate_reasoning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from palmette.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a family marks its reasoning. `starts_inside`: the template already wrote the opening mark."""

    begin: str
    end: str
    starts_inside: bool = False


REASONING_FORMATS = {
    "deepseek-r1": ReasoningFormat("<think>", "</think>", starts_inside=True),
    "deepseek-v3": ReasoningFormat("<think>", "</think>"),
    "glm45": ReasoningFormat("<think>", "</think>"),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "qwen3": ReasoningFormat("<think>", "</think>"),
    "qwen3-thinking": ReasoningFormat("<think>", "</think>", starts_inside=True),
}


def reasoning_format(model_type: str) -> ReasoningFormat:
    """Raises InvalidOption for a family without a known format."""
    found = REASONING_FORMATS.get(model_type.lower())
    if found is None:
        raise InvalidOption("model_type", model_type, f"one of {', '.join(sorted(REASONING_FORMATS))}")
    return found


class _Phase(Enum):
    START = auto()  # will there be reasoning?
    BEFORE_THOUGHT = auto()  # behind the opening mark: line breaks belong to it
    THOUGHT = auto()
    BEFORE_ANSWER = auto()  # behind the closing mark: line breaks belong to it
    ANSWER = auto()


class ReasoningSplitter:
    """Feeds on text as it comes and deals it out to (reasoning, answer); marks belong to neither."""

    def __init__(self, form: ReasoningFormat) -> None:
        self._form = form
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
                self._phase = _Phase.BEFORE_THOUGHT if self._form.starts_inside else _Phase.ANSWER
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
            text = text.lstrip("\n")
            self._phase = _Phase.ANSWER if text else self._phase
        return thought, text


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that could begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
