"""A tokenizer as plain data and back: what a client of a server needs in order to tokenize by itself.

    {"kind": "tokenizers", "tokenizer_json": ..., "special": {text: [id, strips left, strips right]}, ...}
    {"kind": "bytes", ...}                  the byte tokenizer of the tiny models

The tokenizer that is made encodes and decodes any text as the first one does. Data from elsewhere is not trusted: every
length and type is checked before something is built of it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import tokenizers

from palmette.errors import UnsupportedFeature, UsageError
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.fast_tokenizer import FastTokenizer, Vocabulary
from palmette.runtime.tokenizer import SpecialToken, Tokenizer

MAX_JSON: Final = 256 << 20  # characters of a tokenizer.json
MAX_VOCAB: Final = 1 << 22  # tokens
MAX_TEXT: Final = 1 << 20  # characters of one token or template


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as data that JSON can hold.

    Raises:
        UnsupportedFeature: a kind of tokenizer that is neither of the two.
    """
    template = tokenizer.chat_template
    common = {
        "adds_bos": tokenizer.adds_bos,
        "chat_template": template.source,
        "bos_token": template.bos_token,
        "eos_token": template.eos_token,
    }
    if isinstance(tokenizer, ByteTokenizer):
        first = len(ByteTokenizer().special_tokens) + 256
        extra = [tokenizer.token_bytes(i).hex() for i in range(first, tokenizer.vocab_size)]
        return {"kind": "bytes", "extra_tokens": extra, **common}
    if not isinstance(tokenizer, FastTokenizer):
        raise UnsupportedFeature(f"sending a {type(tokenizer).__name__}", "only byte and tokenizers.json ones are data")
    backend, vocabulary = tokenizer._backend, tokenizer._vocabulary
    spelled = _spelled(backend, len(vocabulary.tokens))
    unused = [i for i, token in enumerate(vocabulary.tokens) if token is None]
    for i in unused:
        spelled[i] = None
    return {
        "kind": "tokenizers",
        "tokenizer_json": backend.to_str(),
        "vocab_size": len(vocabulary.tokens),
        "special": {text: list(token) for text, token in vocabulary.special.items()},
        "literal": sorted(vocabulary.literal),
        "unused": unused,  # ids that the vocabulary leaves without a token
        "tokens": None if spelled == list(vocabulary.tokens) else list(vocabulary.tokens),  # where the JSON lacks some
        "byte_level": vocabulary.byte_level,
        "eos_ids": sorted(tokenizer.eos_ids),
        "bos_id": tokenizer.bos_id,
        **common,
    }


def tokenizer_of_data(data: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer behind `tokenizer_data`.

    Raises:
        UsageError: the data is none, and which part of it is not.
    """
    read = _Reader(data)
    kind = read.text("kind")
    adds_bos = read.flag("adds_bos")
    source = read.optional_text("chat_template")
    bos_token, eos_token = read.text("bos_token"), read.text("eos_token")
    if kind == "bytes":
        extra = [_hex(token) for token in read.items("extra_tokens", _is_text)]
        made = ByteTokenizer(extra_tokens=extra, adds_bos=adds_bos)
        made.chat_template = ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)
        return made
    if kind != "tokenizers":
        raise UsageError(f"there is no kind {kind[:40]!r} of tokenizer: the server is newer than this client")
    size = read.number("vocab_size", MAX_VOCAB)
    backend = _backend(read.text("tokenizer_json", MAX_JSON))
    special = {text: _special(text, token, size) for text, token in read.mapping("special").items()}
    literal = frozenset(read.ids("literal", size))
    tokens = _spelled(backend, size)
    for i in read.ids("unused", size):
        tokens[i] = None
    if data.get("tokens") is not None:
        tokens = read.items("tokens", lambda token: token is None or _is_text(token))
        if len(tokens) != size:
            raise UsageError(f"the tokenizer's `tokens` are {len(tokens)}, its `vocab_size` is {size}")
    bos_id = None if data.get("bos_id") is None else read.number("bos_id", size - 1)
    return FastTokenizer(
        backend,
        Vocabulary(tokens=tokens, byte_level=read.flag("byte_level"), literal=literal, special=special),
        eos_ids=frozenset(read.ids("eos_ids", size)),
        bos_id=bos_id,
        adds_bos=adds_bos,
        chat_template=ChatTemplate(source, bos_token=bos_token, eos_token=eos_token),
    )


def _spelled(backend: tokenizers.Tokenizer, size: int) -> list[str | None]:
    """Tokens by id, as the library knows them; ids from `size` on are nobody's."""
    tokens: list[str | None] = [None] * size
    for text, token_id in backend.get_vocab(with_added_tokens=True).items():
        if token_id < size:
            tokens[token_id] = text
    return tokens


def _backend(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise UsageError(f"the tokenizers library refuses the tokenizer's `tokenizer_json`: {error}") from error


def _special(text: str, token: object, size: int) -> SpecialToken:
    if not isinstance(token, list) or len(token) != 3 or not _is_id(token[0], size):
        raise UsageError("the tokenizer's `special` must hold [token id, strips left, strips right] by text")
    if not text or not all(isinstance(flag, bool) for flag in token[1:]):
        raise UsageError("the tokenizer's `special` must hold [token id, strips left, strips right] by text")
    return SpecialToken(token[0], token[1], token[2])


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError("the tokenizer's `extra_tokens` must be bytes in hexadecimal digits") from None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_id(value: object, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size


class _Reader:
    """Fields of data that nobody vouches for."""

    def __init__(self, data: object) -> None:
        if not isinstance(data, Mapping):
            raise UsageError(f"a tokenizer is a JSON object, not {type(data).__name__}")
        self._data = data

    def text(self, name: str, limit: int = MAX_TEXT) -> str:
        value = self._data.get(name)
        if not isinstance(value, str) or len(value) > limit:
            raise UsageError(f"the tokenizer's `{name}` must be a text of at most {limit} characters")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._data.get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        value = self._data.get(name)
        if not isinstance(value, bool):
            raise UsageError(f"the tokenizer's `{name}` must be true or false")
        return value

    def number(self, name: str, limit: int) -> int:
        value = self._data.get(name)
        if not isinstance(value, int) or not _is_id(value, limit + 1):
            raise UsageError(f"the tokenizer's `{name}` must be an integer from 0 to {limit}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._data.get(name)
        if not isinstance(value, Mapping) or len(value) > MAX_VOCAB or not all(map(_is_text, value)):
            raise UsageError(f"the tokenizer's `{name}` must be a JSON object")
        return value

    def items(self, name: str, fits: Callable[[Any], bool]) -> list[Any]:
        value = self._data.get(name)
        if not isinstance(value, list) or len(value) > MAX_VOCAB or not all(map(fits, value)):
            raise UsageError(f"the tokenizer's `{name}` must be a list of at most {MAX_VOCAB} fitting items")
        return value

    def ids(self, name: str, size: int) -> Sequence[int]:
        return self.items(name, lambda value: _is_id(value, size))
