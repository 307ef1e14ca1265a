"""One request's constraint while it lives: the mask of its next draw, the tokens it forces, and whether it is complete.

A thin layer between a job and its matcher. Where tokens are forced the mask holds exactly the next one, whether or not
the engine jumps over them (`jumps`): jumping is a way of executing, never a change of meaning. Knows tokens, bytes and
masks; nothing of scheduling, logits or texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from palmette.fsm.cursor import Cursor, Encode
from palmette.fsm.matcher import Matcher
from palmette.fsm.slices import Mask

_TAIL = 32  # tokens that are looked back at for a place where the tokenizer always splits
_SPACES = b" \t\n\r\x0b\x0c"


class DrawMask(NamedTuple):
    """Packed bits of the tokens that may be drawn (bit `id % 32` of word `id // 32`)."""

    words: Mask
    unsteered: Mask | None  # what would be allowed if the token budget were larger; None where that is the same


class Guide:
    """Used by one thread at a time. Anything it raises ends its own request."""

    def __init__(
        self,
        matcher: Cursor,
        *,
        token_bytes: Callable[[int], bytes],
        eos_ids: frozenset[int],
        encode: Encode | None,
        jumps: bool = True,
        rewrites: bool = False,
        unenforced: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            encode: `Tokenizer.encode_certain`, where its tokens can be foretold; None: nothing is forced.
            rewrites: jumps follow the paper's rule (`rewrite`), and no mask is narrowed to a forced token.
        """
        self.jumps = jumps and not rewrites
        self.rewrites = jumps and rewrites
        self.unenforced = unenforced
        self._matcher = matcher
        self._token_bytes = token_bytes
        self._eos_ids = eos_ids
        self._encode = None if rewrites else encode
        self._encode_whole = encode if rewrites else None
        self._recent: list[int] = []  # the last tokens read, at most _TAIL
        self._words: Mask | None = None
        self._plan()

    @property
    def is_complete(self) -> bool:
        """Is the constraint satisfied, and can nothing but the end follow?"""
        if not self._matcher.is_accepting:
            return False
        words = self._matcher.mask().copy()
        _clear(words, self._eos_ids)
        return not words.any()

    def min_tokens(self) -> int:
        """An upper bound on the tokens from here to a text that satisfies the constraint."""
        return self._matcher.cost_to_accept() - 1  # end-of-sequence needs no place

    def mask(self, left: int, banned: Iterable[int] = ()) -> DrawMask:
        """The tokens that may be drawn next, valid until the next call.

        Args:
            left: tokens that may still come, this one included, at least 1.
            banned: ids to leave out where something else remains: a constraint that can only end, ends.

        Raises:
            RequestError, UnsupportedConstraint: no accepting path fits, or a limit on states is crossed.
        """
        plain = self._matcher.mask()
        if self._words is None:
            self._words = np.empty_like(plain)
        words = self._words
        self._matcher.fill_mask(words, budget=left + 1)  # end-of-sequence needs no place
        unsteered = None if np.array_equal(words, plain) else plain
        if banned:
            rest = words.copy()
            _clear(rest, banned)
            if rest.any():
                words = rest
        return DrawMask(words, unsteered)

    def next_forced(self, left: int) -> int | None:
        """The token that a mask would allow alone because it is forced, if there is one.

        Args:
            left: tokens that may still come.
        """
        if left < 1 or not self._matcher.forced_plan:
            return None
        self.mask(left)  # drops a plan that does not fit into what is left
        plan = self._matcher.forced_plan
        return plan[0] if plan else None

    def advance(self, token: int) -> None:
        """Read a token that the mask allowed.

        Raises:
            RequestError: it did not.
        """
        self._matcher.advance(token)
        self._recent.append(token)
        del self._recent[:-_TAIL]
        if not self._matcher.forced_plan:
            self._plan()

    def rewrite(self, emitted: Sequence[int], left: int) -> tuple[int, list[int]] | None:
        """The paper's jump: how many of the `emitted` tokens stay, and the tokens behind them; None without a jump.

        Args:
            left: tokens that may still come.
        """
        matcher = self._matcher
        if self._encode_whole is None or not self.rewrites or not isinstance(matcher, Matcher):
            return None
        kept, tokens = matcher.paper_jump(self._encode_whole, emitted)
        new = kept + len(tokens) - len(emitted)
        if not tokens or new >= left:
            return None
        before = matcher.fork()
        matcher.rollback(len(emitted) - kept)
        for token in tokens:
            matcher.advance(token)
        if matcher.cost_to_accept() - 1 > left - new:  # the jump would take the room that the end needs
            self._matcher = before
            return None
        return kept, tokens

    def _plan(self) -> None:
        if self._encode is None:
            return
        tail = self._tail()
        if tail is not None:
            self._matcher.plan_forced(self._encode, tail)

    def _tail(self) -> Sequence[int] | None:
        """The last tokens back to where any pre-tokenizer splits: before a space that follows text, or at the start.

        None where that is too far away: then nothing is known to be certain.
        """
        recent = self._recent
        for at in range(len(recent) - 1, 0, -1):
            here, before = self._token_bytes(recent[at]), self._token_bytes(recent[at - 1])
            if len(here) > 1 and here[0] == 0x20 and here[1] not in _SPACES and before and before[-1] not in _SPACES:
                return recent[at:]
        return recent if len(recent) < _TAIL else None


def _clear(words: Mask, ids: Iterable[int]) -> None:
    for token in ids:
        if token // 32 < len(words):
            words[token // 32] &= np.uint32(~(1 << (token % 32)) & 0xFFFFFFFF)
