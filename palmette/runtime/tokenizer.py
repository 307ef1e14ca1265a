"""What the runtime asks of a tokenizer, and the part that every tokenizer shares.

Text goes in as pieces. Only template text is parsed for special tokens; what a user wrote never is. Nothing is added:
no beginning-of-sequence, no dummy space, so encode and decode are inverse on any text and a seam costs nothing.
Decoding is by bytes: `decode(ids)` is the concatenation of `token_bytes(id)` as UTF-8.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from palmette.errors import InvalidOption
from palmette.runtime.chat_template import ChatTemplate
from palmette.types import TextPiece


class SpecialToken(NamedTuple):
    """A token that stands for no text. It may swallow the white space beside it in template text."""

    token_id: int
    strips_left: bool = False
    strips_right: bool = False


class Tokenizer(ABC):
    """Text to token ids and back. Immutable and thread-safe."""

    def __init__(
        self,
        *,
        vocab_size: int,
        special: Mapping[str, SpecialToken],
        eos_ids: frozenset[int],
        bos_id: int | None,
        adds_bos: bool,
        chat_template: ChatTemplate,
    ) -> None:
        self.vocab_size = vocab_size  # ids are < vocab_size; the model's logits may be wider
        self.eos_ids = eos_ids  # any of them ends a generation
        self.bos_id = bos_id
        self.adds_bos = adds_bos and bos_id is not None  # does a plain-text stream begin with bos_id?
        self.chat_template = chat_template
        self._special = dict(special)
        self._special_bytes = {s.token_id: text.encode() for text, s in special.items()}
        self._special_ids = frozenset(s.token_id for s in special.values())
        longest_first = sorted(special, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else None

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]:
        """Tokenize non-empty text that holds no special token."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; b"" for a special token and for an id the vocabulary leaves unused."""

    @property
    def is_certain(self) -> bool:
        """Does the encoding of a text split at its own token boundaries, as byte-pair encoding does? Then tokens of a
        text can be certain before its end is known."""
        return False

    def encode_certain(self, data: bytes) -> list[int] | None:
        """The tokens of `data` by themselves; None where that says nothing of them inside a longer text."""
        return self.encode_bytes(data) if self.is_certain else None

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """The tokens of `data`; None where it is no UTF-8."""
        try:
            return self.encode(data.decode())
        except UnicodeDecodeError:
            return None

    def shown_bytes(self, token_id: int) -> bytes:
        """`token_bytes`, with special tokens as their text."""
        return self.token_bytes(token_id) or self._special_bytes.get(token_id, b"")

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens by their text."""
        return {text: s.token_id for text, s in self._special.items()}

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def begin_ids(self) -> tuple[int, ...]:
        """What a plain-text stream begins with."""
        return (self.bos_id,) if self.adds_bos and self.bos_id is not None else ()

    def encode(self, text: str) -> list[int]:
        """Tokenize a user's text: nothing is added, nothing in it is special.

        Bytes that no token of the vocabulary spells are dropped, as the model's own tokenizer does (SmolLM2 has none
        for a few control characters and for planes 4 to 15 of Unicode).

        Raises:
            InvalidOption: a lone surrogate, which no encoding can write.
        """
        if not text:
            return []
        _check_surrogates(text)
        return self._encode_plain(text)

    def encode_pieces(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Tokenize adjacent pieces as one text. Special pieces are split at their special tokens first; what stands
        between two of those is one run, however many pieces it came in.

        Raises:
            InvalidOption: as `encode`.
        """
        ids: list[int] = []
        run: list[str] = []
        for piece in pieces:
            if not piece.special or self._special_pattern is None:
                run.append(piece.text)
                continue
            # split() alternates: text, special token, text, ...
            for i, part in enumerate(self._split_special(piece.text)):
                if i % 2 == 0:
                    run.append(part)
                    continue
                ids += self.encode("".join(run))
                ids.append(self._special[part].token_id)
                run.clear()
        return ids + self.encode("".join(run))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special ones count nothing, invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def _split_special(self, text: str) -> list[str]:
        assert self._special_pattern is not None, "there are special tokens"
        parts = self._special_pattern.split(text)
        for i in range(1, len(parts), 2):
            token = self._special[parts[i]]
            if token.strips_left:
                parts[i - 1] = parts[i - 1].rstrip()
            if token.strips_right:
                parts[i + 1] = parts[i + 1].lstrip()
        return parts


def _check_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text[max(0, error.start - 20) : error.start + 20]
        raise InvalidOption("text", shown, f"Unicode text; character {error.start} is a lone surrogate") from error
