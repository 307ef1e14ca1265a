"""The text of one request while it comes: what of it stands in the state, what is reasoning, and what is shown.

    text      prefix | <think> reasoning </think> | answer | end
    written            <think> reasoning </think>   answer           what follows the prompt
    thought                    reasoning
    answer                                          answer           the hole's text
    shown                                           answer without markup of tool calls

Knows characters; nothing of tokens, values or streams.
"""

from __future__ import annotations

from typing import NamedTuple

from palmette.interpreter.reasoning import ReasoningSplitter
from palmette.ir import TextFilter


class Delta(NamedTuple):
    """What one piece of text added."""

    written: str
    thought: str
    shown: str


class HoleText:
    """Reads one sample's text.

    Attributes:
        thought: the reasoning so far.
        answer: the answer so far.
        matched: the character that ended the answer, once one did.
    """

    __slots__ = ("_ends", "_shown", "_skip", "_splitter", "answer", "matched", "thought")

    def __init__(
        self, prefix_len: int, splitter: ReasoningSplitter | None, ends: tuple[str, ...], shown: TextFilter | None
    ) -> None:
        """
        Args:
            prefix_len: characters at the beginning that the prompt has already.
            ends: characters of which the first in the answer ends it; the text is complete with it.
        """
        self.thought = ""
        self.answer = ""
        self.matched: str | None = None
        self._skip = prefix_len
        self._splitter = splitter
        self._ends = ends
        self._shown = shown

    def feed(self, text: str) -> Delta:
        """A further piece, as it came."""
        written = text[self._skip :]
        self._skip -= len(text) - len(written)
        thought, answer = ("", written) if self._splitter is None else self._splitter.feed(written)
        kept = self._without_end(answer)
        shown = kept if self._shown is None else self._shown.feed(kept)
        return self._added(written[: len(written) - (len(answer) - len(kept))], thought, kept, shown)

    def finish(self) -> Delta:
        """What was held back, when nothing more will come."""
        thought, answer = ("", "") if self._splitter is None else self._splitter.finish()
        shown = answer if self._shown is None else self._shown.feed(answer) + self._shown.finish()
        return self._added("", thought, answer, shown)

    def _added(self, written: str, thought: str, answer: str, shown: str) -> Delta:
        self.thought += thought
        self.answer += answer
        return Delta(written, thought, shown)

    def _without_end(self, answer: str) -> str:
        if self.matched is not None:
            return ""
        found = [(at, end) for end in self._ends if (at := answer.find(end)) >= 0]
        if not found:
            return answer
        at, self.matched = min(found)
        return answer[:at]
