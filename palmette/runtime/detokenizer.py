"""From token ids to text, one token at a time, ending at stop strings.

Works on bytes: a token is whatever bytes it stands for, and a character comes out when its last byte is in. Text that
could still become a stop string is held back, so what came out is never taken back. A stop string matches where its
last character completes first (of several completing there, the longest), which does not depend on how the text was
cut into tokens. So does a stop pattern.

Pure Python. Knows neither tokenizer nor sampling; end-of-sequence and stop tokens never get here.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import NamedTuple

from palmette.fsm.scan import Scanner


class Delta(NamedTuple):
    """What one token added."""

    text: str  # whole characters, never part of a stop string
    matched: str | None  # the stop string that ends the text here


class Ended(NamedTuple):
    """The end of the text: all deltas + `text` = detokenized(first num_tokens tokens) + tail."""

    text: str  # what was held back and belongs to the text after all
    num_tokens: int  # tokens wholly before the cut, ending at a character boundary
    tail: str  # kept text behind them


class Detokenizer:
    """The text of one hole."""

    def __init__(
        self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = (), patterns: Sequence[Scanner] = ()
    ) -> None:
        """`token_bytes(id)` gives a token's bytes, b"" for a special one. `stop` strings are not empty; `patterns` are
        searches that begin with this text."""
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        self._patterns = tuple(patterns)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces: list[str] = []  # the characters each token completed
        self._ends: list[tuple[int, bool]] = []  # behind each token: characters so far; is it a character boundary?
        self._held = ""  # completed characters that did not come out yet
        self._out = 0  # characters that came out
        self._search = 0  # matches beginning before this place in _held were passed over
        self._cut: int | None = None  # characters of the final text, once a stop string matched

    def push(self, token_id: int, *, may_stop: bool = True) -> Delta:
        """Add a token. Nothing may follow a match.

        Args:
            may_stop: False while the hole may not end yet (`min_new_tokens`): a stop string that completes with this
                token is ordinary text.
        """
        assert self._cut is None, "a token behind a stop string"
        piece = self._decoder.decode(self._token_bytes(token_id))
        self._pieces.append(piece)
        self._ends.append((self._out + len(self._held) + len(piece), not self._decoder.getstate()[0]))
        self._held += piece
        if not piece:
            return Delta("", None)
        matched, start = self._match(may_stop, len(piece))
        if matched is not None:
            self._cut = self._out + start
            text, self._held = self._held[:start], ""
            self._out = self._cut
            return Delta(text, matched)
        keep = max(self._could_begin_stop(), self._could_begin_pattern())
        return Delta(self._release(len(self._held) - keep), None)

    def finish(self) -> Ended:
        """The end, whatever brought it. Bytes of an incomplete last character are dropped."""
        text = "" if self._cut is not None else self._release(len(self._held))
        cut = self._out
        num_tokens = len(self._ends)
        while num_tokens and not (self._ends[num_tokens - 1][1] and self._ends[num_tokens - 1][0] <= cut):
            num_tokens -= 1
        kept = self._ends[num_tokens - 1][0] if num_tokens else 0
        tail = "".join(self._pieces[num_tokens:])[: cut - kept]
        return Ended(text, num_tokens, tail)

    def _match(self, may_stop: bool, new: int) -> tuple[str | None, int]:
        """The stop string or pattern that completes first among the `new` last characters, and where it begins in
        _held."""
        best = self._stop_match(may_stop)
        for scanner in self._patterns:
            for at in range(len(self._held) - new, len(self._held)):
                start = scanner.push(self._held[at])
                if start is None or not may_stop:
                    continue
                start = max(0, start - self._out)  # what came out while it could not stop is not taken back
                if best is None or (at + 1, start) < best[:2]:
                    best = (at + 1, start, scanner.pattern.pattern)
                break  # nothing follows a match
        return (None, 0) if best is None else (best[2], best[1])

    def _stop_match(self, may_stop: bool) -> tuple[int, int, str] | None:
        """(end, start, stop string): earliest end, then longest."""
        while True:
            best: tuple[int, int, str] | None = None
            for stop in self._stop:
                start = self._held.find(stop, self._search)
                if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                    best = (start + len(stop), start, stop)
            if best is None or may_stop:
                return best
            self._search = best[1] + 1

    def _could_begin_stop(self) -> int:
        """Length of the longest suffix of _held, from _search on, that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held) - self._search), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _could_begin_pattern(self) -> int:
        """Length of the longest suffix of _held that may become a match of a pattern."""
        end = self._out + len(self._held)
        return min(len(self._held), max((end - scanner.open_from for scanner in self._patterns), default=0))

    def _release(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        self._out += size
        self._search = max(0, self._search - size)
        return text
