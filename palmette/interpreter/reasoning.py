"""Splitting a reasoning segment from the answer, while the text streams.

The formats of the model families are data. Model names are those of SGLang's `separate_reasoning`.
"""

from __future__ import annotations

from dataclasses import dataclass

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


class ReasoningSplitter:
    """Feeds on text as it comes and deals it out to (reasoning, answer); marks belong to neither."""

    def __init__(self, form: ReasoningFormat) -> None:
        self._form = form
        self._inside = form.starts_inside
        self._held = ""  # could still become a mark
        self._done = False
        self._at_start = True
        self._answer_started = False

    def feed(self, text: str) -> tuple[str, str]:
        return self._deal(self._held + text, last=False)

    def finish(self) -> tuple[str, str]:
        """What was held back, when nothing more will come."""
        return self._deal(self._held, last=True)

    def _deal(self, text: str, *, last: bool) -> tuple[str, str]:
        self._held = ""
        reasoning = ""
        while not self._done:
            mark = self._form.end if self._inside else self._form.begin
            if self._at_start:
                # A model may write the opening mark although its template did; then it is dropped too.
                text = text.lstrip()
                if text.startswith(self._form.begin):
                    text = text[len(self._form.begin) :].lstrip("\n")
                    self._inside, self._at_start = True, False
                    continue
                if not last and self._form.begin.startswith(text):
                    self._held = text
                    return reasoning, ""
                self._at_start = False
                self._done = not self._inside  # an answer that begins without reasoning has none
                continue
            before, found, after = text.partition(mark)
            if found:
                reasoning += before
                text, self._done = after, True
                continue
            keep = 0 if last else _overlap(text, mark)
            self._held = text[len(text) - keep :] if keep else ""
            return reasoning + text[: len(text) - keep], ""
        if not self._answer_started:
            text = text.lstrip("\n")  # the blank lines between the mark and the answer
            self._answer_started = bool(text)
        return reasoning, text


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that could begin `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
