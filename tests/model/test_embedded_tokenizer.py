"""The embedded model's tokenizer gives the ids of the original, and takes any text apart without loss."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from palmette.runtime.fast_tokenizer import FastTokenizer
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.load import find_model
from palmette.types import Message, TextPiece
from tests.runtime.models.vocabularies import CORPUS, TEXTS

pytestmark = pytest.mark.model


@cache
def ours() -> FastTokenizer:
    return gguf_tokenizer(GGUFFile(find_model("smollm2")[0]))


@cache
def spelled() -> frozenset[bytes]:
    return frozenset(ours().token_bytes(i) for i in range(ours().vocab_size))


@cache
def theirs() -> Any:
    """transformers' conversion of the same file. It splits words like GPT-2; SmolLM2's own tokenizer.json takes digits
    apart first, which decides how white space before a number is split."""
    path, _ = find_model("smollm2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own code
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@pytest.mark.parametrize("text", [*TEXTS, *CORPUS[:3]])
def test_ids_are_those_of_transformers(text: str) -> None:
    if "<|" not in text:
        assert ours().encode(text) == theirs()(text, add_special_tokens=False).input_ids
    assert ours().decode(ours().encode(text)) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.sampled_from("ab 1\n\t'.<|>"), st.characters(exclude_categories=["Cs"])), max_size=60))
def test_any_text_has_the_same_ids_and_comes_back(text: str) -> None:
    ids = ours().encode(text)
    assert ids == theirs()(text, add_special_tokens=False).input_ids
    if spelled() >= {bytes([b]) for b in text.encode()}:
        assert ours().decode(ids) == text


def test_a_conversation_has_the_ids_of_transformers() -> None:
    messages = [Message("user", "What is 2+2?"), Message("assistant", "4."), Message("user", "Sure?\n")]
    template = ours().chat_template
    pieces: list[TextPiece] = []
    for i, message in enumerate(messages):
        around = template.role_pieces(messages[:i], message.role)
        pieces += [TextPiece(around.begin, True), TextPiece(message.content), TextPiece(around.end, True)]
    wanted = theirs().apply_chat_template([{"role": m.role, "content": m.content} for m in messages], tokenize=False)
    assert "".join(p.text for p in pieces) == wanted
    assert ours().encode_pieces(pieces) == theirs()(wanted, add_special_tokens=False).input_ids


def test_the_end_of_a_turn_ends_a_generation() -> None:
    assert ours().eos_ids == {ours().special_tokens["<|im_end|>"]}
    assert ours().begin_ids() == ()


def test_the_vocabulary_lacks_only_bytes_of_control_characters_and_of_rare_planes() -> None:
    missing = {b for b in range(256) if bytes([b]) not in spelled()}
    controls = {*range(0x20), 0x7F} - {0x09, 0x0A, 0x0D}
    assert missing <= controls | {0xC0, 0xC1} | set(range(0xF1, 0x100))
