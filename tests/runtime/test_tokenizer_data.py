"""A tokenizer that went through JSON encodes and decodes as the first one does; what is no tokenizer is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from palmette.errors import UsageError
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.runtime.models.tokenizer_of import tokenizer_of
from palmette.runtime.tokenizer import Tokenizer
from palmette.runtime.tokenizer_data import tokenizer_data, tokenizer_of_data
from palmette.types import Message, TextPiece
from tests.runtime.models.vocabularies import TEXTS, byte_level, sentencepiece

SPECIAL = "<|im_start|> a <|bos|>b<|im_end|><|endoftext|></s>"


def through_json(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer_of_data(json.loads(json.dumps(tokenizer_data(tokenizer))))


def assert_same(ours: Tokenizer, theirs: Tokenizer, texts: list[str]) -> None:
    assert ours.vocab_size == theirs.vocab_size
    assert ours.special_tokens == theirs.special_tokens
    assert (ours.eos_ids, ours.bos_id, ours.adds_bos) == (theirs.eos_ids, theirs.bos_id, theirs.adds_bos)
    assert ours.is_certain == theirs.is_certain
    assert ours.chat_template.source == theirs.chat_template.source
    assert [ours.shown_bytes(i) for i in range(ours.vocab_size)] == [
        theirs.shown_bytes(i) for i in range(ours.vocab_size)
    ]
    for text in texts:
        for special in (False, True):
            assert ours.encode_pieces([TextPiece(text, special)]) == theirs.encode_pieces([TextPiece(text, special)])
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def directory(path: Path, backend: Any, **config: Any) -> Tokenizer:
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory_tokenizer(path)


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe"])
def test_a_byte_level_tokenizer_is_the_same_behind_json(pre: str, tmp_path: Path) -> None:
    backend = byte_level(pre)
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    backend.add_special_tokens([AddedToken("<pad>", lstrip=True, rstrip=True)])
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    first = directory(tmp_path, backend, eos_token="<|im_end|>", chat_template=template)
    again = through_json(first)
    assert_same(again, first, [*TEXTS, SPECIAL, "a <pad> b", "x<tool>y"])
    messages = [Message("user", "hi")]
    assert again.chat_template.render(messages) == first.chat_template.render(messages) == "hi<|im_end|>"


def test_a_sentencepiece_tokenizer_is_the_same_behind_json(tmp_path: Path) -> None:
    first = directory(tmp_path, sentencepiece(dummy_space=True), bos_token="<s>", eos_token="</s>")
    assert_same(through_json(first), first, [*TEXTS, SPECIAL])


def test_a_byte_tokenizer_is_the_same_behind_json() -> None:
    for first in (ByteTokenizer(), ByteTokenizer(extra_tokens=[b"ab", b"\xff\xfe"], adds_bos=True, chat_template=None)):
        assert_same(through_json(first), first, [*TEXTS, SPECIAL, "abab"])


@pytest.mark.model
def test_the_embedded_models_tokenizer_is_the_same_behind_json() -> None:
    first = tokenizer_of("smollm2")[0]
    data = tokenizer_data(first)
    assert data["tokens"] is None, "what the JSON spells is not sent twice"
    again = through_json(first)
    assert_same(again, first, [*TEXTS, SPECIAL])

    @settings(max_examples=100, deadline=None)
    @given(st.text())
    def any_text(text: str) -> None:
        assert again.encode(text) == first.encode(text)

    any_text()


def test_the_data_of_a_tokenizer_whose_json_lacks_tokens_brings_them(tmp_path: Path) -> None:
    first = directory(tmp_path, byte_level())
    data = tokenizer_data(first)
    data["tokens"] = [None if i == 300 else token for i, token in enumerate(spelled(first))]
    again = tokenizer_of_data(data)
    assert again.token_bytes(300) == b"" != first.token_bytes(300)
    assert again.token_bytes(301) == first.token_bytes(301)


def spelled(tokenizer: Tokenizer) -> list[str]:
    vocabulary = json.loads(tokenizer_data(tokenizer)["tokenizer_json"])["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "other"),
        ("kind", 3),
        ("tokenizer_json", "{}"),
        ("tokenizer_json", None),
        ("vocab_size", -1),
        ("vocab_size", 1 << 40),
        ("vocab_size", True),
        ("special", []),
        ("special", {"<s>": [1]}),
        ("special", {"<s>": [10**9, False, False]}),
        ("special", {"<s>": [1, 0, False]}),
        ("special", {"": [1, False, False]}),
        ("literal", [True]),
        ("unused", [10**9]),
        ("tokens", ["a"]),
        ("tokens", [3]),
        ("byte_level", 1),
        ("eos_ids", [-1]),
        ("bos_id", 10**9),
        ("bos_id", "1"),
        ("adds_bos", None),
        ("chat_template", 3),
        ("chat_template", "x" * (2 << 20)),
        ("bos_token", None),
    ],
)
def test_data_that_is_no_tokenizer_is_refused_by_the_name_of_its_field(field: str, value: Any, tmp_path: Path) -> None:
    data = tokenizer_data(directory(tmp_path, byte_level()))
    tokenizer_of_data(data)
    with pytest.raises(UsageError, match="kind" if value == "other" else f"`{field}`"):
        tokenizer_of_data(data | {field: value})


def test_data_that_is_no_object_and_bytes_that_are_no_bytes_are_refused() -> None:
    none: list[Any] = [[], "x", None]
    for data in none:
        with pytest.raises(UsageError, match="JSON object"):
            tokenizer_of_data(data)
    with pytest.raises(UsageError, match="hexadecimal"):
        tokenizer_of_data(tokenizer_data(ByteTokenizer()) | {"extra_tokens": ["zz"]})


def test_the_module_loads_no_torch() -> None:
    code = "import sys; import palmette.runtime.tokenizer_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
