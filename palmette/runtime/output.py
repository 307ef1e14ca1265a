"""What one generate request has produced: its tokens, their text, and when to stop.

Knows stop rules and the detokenizer. Does not know scheduling, memory or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from palmette.fsm.scan import Scanner
from palmette.runtime.detokenizer import Detokenizer
from palmette.types import FinishReason, SamplingParams


class Progress(NamedTuple):
    """What one token added."""

    text: str
    reason: FinishReason | None  # set when the token ends the hole
    matched: str | int | None  # the stop string or token that ended it


class Kept(NamedTuple):
    """What of an output belongs to the state, and the text that was still held back."""

    token_ids: tuple[int, ...]
    tail: str
    text: str
    num_dropped: int  # sampled tokens that leave no trace: behind a stop string, or an incomplete character


class Output:
    """The tokens of one hole."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        token_bytes: Callable[[int], bytes],
        must_end: bool = False,
        searches: Sequence[Scanner] = (),
    ) -> None:
        """
        Args:
            max_new_tokens: params.max_new_tokens or less, where context or pool end earlier.
            must_end: a constraint decides where the text may end: `ignore_eos` avoids an end-of-sequence where
                something else may follow, and one that comes all the same ends the hole.
            searches: for each of params.stop_regex, begun with this text.
        """
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []  # sampled, the one that ended it included
        self._min_new_tokens = params.min_new_tokens
        ends = frozenset() if params.ignore_eos and not must_end else eos_ids
        self._end_ids = frozenset(params.stop_token_ids) | ends
        self._banned = tuple(sorted(self._end_ids)) if params.min_new_tokens else ()
        self._always_banned = tuple(sorted(eos_ids)) if params.ignore_eos and must_end else ()
        self._counts: dict[int, int] | None = (
            {} if params.frequency_penalty or params.presence_penalty or params.repetition_penalty != 1.0 else None
        )
        self._token_bytes, self._stop, self._searches = token_bytes, params.stop, tuple(searches)
        self._detokenizer = Detokenizer(token_bytes, params.stop, searches)
        self._num_out = 0  # characters that came out
        self._ended_by_token = False

    @property
    def banned(self) -> tuple[int, ...]:
        """Token ids that the next draw must not give: what would end the hole before min_new_tokens."""
        return self._banned if len(self.token_ids) < self._min_new_tokens else self._always_banned

    @property
    def counts(self) -> dict[int, int] | None:
        """Occurrences by token id; None unless a penalty needs them."""
        return self._counts

    def push(self, token_id: int) -> Progress:
        """Add a token."""
        progress = self._push(token_id)
        self._num_out += len(progress.text)
        return progress

    def rewrite(self, kept: int, token_ids: Sequence[int]) -> Progress:
        """Put `token_ids` behind the first `kept` tokens, instead of those there. They spell the same text and more."""
        tokens = [*self.token_ids[:kept], *token_ids]
        self.token_ids = []
        if self._counts is not None:
            self._counts = {}
        searches = [scanner.pattern.scanner() for scanner in self._searches]
        self._detokenizer = Detokenizer(self._token_bytes, self._stop, searches)
        text, progress = "", Progress("", None, None)
        for token in tokens:
            progress = self._push(token)
            text += progress.text
            if progress.reason is not None:
                break
        new = text[self._num_out :]
        self._num_out = len(text)
        return progress._replace(text=new)

    def _push(self, token_id: int) -> Progress:
        self.token_ids.append(token_id)
        if token_id in self._end_ids:
            self._ended_by_token = True
            return Progress("", FinishReason.STOP, token_id)
        if self._counts is not None:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        delta = self._detokenizer.push(token_id, may_stop=len(self.token_ids) >= self._min_new_tokens)
        if delta.matched is not None:
            return Progress(delta.text, FinishReason.STOP, delta.matched)
        if len(self.token_ids) >= self.max_new_tokens:
            return Progress(delta.text, FinishReason.LENGTH, None)
        return Progress(delta.text, None, None)

    def end(self) -> Kept:
        """The end, whatever brought it; called once."""
        ended = self._detokenizer.finish()
        candidates = len(self.token_ids) - self._ended_by_token
        dropped = candidates - ended.num_tokens - bool(ended.tail)
        return Kept(tuple(self.token_ids[: ended.num_tokens]), ended.tail, ended.text, dropped)
