"""A tokenizer that needs no file: one token per byte, a few special ones, ChatML as its chat template.

For tests and for the tiny models. Ids: 0..255 the bytes, then the special tokens in the order of `SPECIAL`, then
`extra_tokens`, which stand for several bytes each and are preferred where they match (the longest first).
"""

from __future__ import annotations

from collections.abc import Sequence

from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.tokenizer import SpecialToken, Tokenizer

SPECIAL = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteTokenizer(Tokenizer):
    """One token per byte; see the module."""

    def __init__(
        self,
        *,
        extra_tokens: Sequence[bytes] = (),
        adds_bos: bool = False,
        chat_template: str | None = CHATML,
    ) -> None:
        """Raises no error: any bytes make a vocabulary."""
        ids = {text: 256 + i for i, text in enumerate(SPECIAL)}
        self._bytes = [bytes([b]) for b in range(256)] + [b""] * len(SPECIAL) + [bytes(t) for t in extra_tokens]
        first_extra = 256 + len(SPECIAL)
        self._extra = {bytes(token): first_extra + i for i, token in enumerate(extra_tokens)}
        self._lengths = sorted({len(t) for t in self._extra}, reverse=True)
        super().__init__(
            vocab_size=len(self._bytes),
            special={text: SpecialToken(i) for text, i in ids.items()},
            eos_ids=frozenset({ids["<|eos|>"], ids["<|im_end|>"]}),
            bos_id=ids["<|bos|>"],
            adds_bos=adds_bos,
            chat_template=ChatTemplate(chat_template, bos_token="<|bos|>", eos_token="<|eos|>"),
        )

    @property
    def is_certain(self) -> bool:
        return not self._extra

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def _encode_plain(self, text: str) -> list[int]:
        data = text.encode()
        if not self._extra:
            return list(data)
        ids: list[int] = []
        at = 0
        while at < len(data):
            size = next((n for n in self._lengths if data[at : at + n] in self._extra), 1)
            ids.append(self._extra[data[at : at + size]] if data[at : at + size] in self._extra else data[at])
            at += size
        return ids
