"""A model's own tokenizer, run by the `tokenizers` library: from a tokenizer.json, or from GGUF metadata.

Two kinds of vocabulary are understood, because their tokens are bytes: byte-level BPE (each byte has a printable
character that stands for it) and SentencePiece-style with byte fallback ("▁" is a space, <0x0A> a byte). A dummy space
before the text is switched off: text is encoded in parts here, and each part would get one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import tokenizers

from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.tokenizer import SpecialToken, Tokenizer

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What every token is, by id."""

    tokens: Sequence[str | None]  # as the vocabulary writes them; None = unused
    byte_level: bool  # else SentencePiece style
    literal: frozenset[int]  # tokens written as plain text: added ones
    special: Mapping[str, SpecialToken]


class FastTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer` behind our interface."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        vocabulary: Vocabulary,
        *,
        eos_ids: frozenset[int],
        bos_id: int | None,
        adds_bos: bool,
        chat_template: ChatTemplate,
    ) -> None:
        """`backend` becomes this object's own; its handling of special tokens is changed."""
        super().__init__(
            vocab_size=len(vocabulary.tokens),
            special=vocabulary.special,
            eos_ids=eos_ids,
            bos_id=bos_id,
            adds_bos=adds_bos,
            chat_template=chat_template,
        )
        backend.encode_special_tokens = True  # "<|im_end|>" in a user's text is ordinary text
        self._backend = backend
        model = backend.model
        self._is_certain = isinstance(model, tokenizers.models.BPE) and not model.ignore_merges
        self._vocabulary = vocabulary
        self._bytes: list[bytes | None] = [None] * self.vocab_size  # filled as asked for

    @property
    def is_certain(self) -> bool:
        """Byte-pair encoding that always merges: Unigram and `ignore_merges` choose a word's tokens as a whole."""
        return self._is_certain

    def encode_certain(self, data: bytes) -> list[int] | None:
        # A normalizer may compose what comes with what is there: only text that it leaves alone is foretold.
        normalizer = self._backend.normalizer
        if self._vocabulary.byte_level and normalizer is not None:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                return None
            if normalizer.normalize_str(text) != text:
                return None
        return super().encode_certain(data)

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _spell(self, token_id: int) -> bytes:
        text = self._vocabulary.tokens[token_id]
        if text is None or self.is_special(token_id):
            return b""
        if token_id in self._vocabulary.literal:
            return text.encode()
        if self._vocabulary.byte_level:
            try:
                return text.translate(_BYTES).encode("latin-1")
            except UnicodeEncodeError:  # a character that is no letter stands for itself
                return b"".join(bytes([_LETTERS[c]]) if c in _LETTERS else c.encode() for c in text)
        byte = _BYTE_TOKEN.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()


def _letters() -> Mapping[str, int]:
    """Byte-level BPE's alphabet (Radford et al. 2019, section 2.2): printable Latin-1 characters stand for themselves,
    the other bytes, in order, for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return MappingProxyType(table | {chr(0x100 + i): b for i, b in enumerate(others)})


_LETTERS: Final = _letters()
# The same for str.translate; what is beyond ASCII and no letter leaves Latin-1, and so is noticed.
_BYTES: Final = {**dict.fromkeys(range(128, 256), 256), **{ord(c): byte for c, byte in _LETTERS.items()}}
