"""A tokenizer rebuilt from GGUF metadata gives the ids of the one that was written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from palmette.errors import CorruptModel, UnsupportedFeature
from palmette.runtime.fast_tokenizer import FastTokenizer
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.types import TextPiece
from tests.runtime.models.vocabularies import TEXTS, byte_level, sentencepiece, write_vocabulary


def rebuilt(path: Path, **changes: Any) -> FastTokenizer:
    """Read the tokenizer, with metadata changed or (None) removed."""
    file = GGUFFile(path)
    for key, value in changes.items():
        name = f"tokenizer.ggml.{key}"
        if value is None:
            del file.metadata[name]
        else:
            file.metadata[name] = value
    return gguf_tokenizer(file)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_vocabulary(tmp_path / "t.gguf", byte_level("smollm"), pre="smollm", template="<|im_start|><|im_end|>")


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_ids_are_those_of_the_original(pre: str, tmp_path: Path) -> None:
    original = byte_level(pre)
    ours = rebuilt(write_vocabulary(tmp_path / "t.gguf", original, pre=pre))
    for text in TEXTS:
        if "<|" not in text:
            assert ours.encode(text) == original.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pre", ["default", "tekken"])
def test_other_ways_of_splitting_lose_nothing(pre: str, tmp_path: Path) -> None:
    ours = rebuilt(write_vocabulary(tmp_path / "t.gguf", byte_level(), pre=pre))
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS


def test_sentencepiece_merges_follow_from_scores(tmp_path: Path) -> None:
    original = sentencepiece(dummy_space=False)
    ours = rebuilt(write_vocabulary(tmp_path / "t.gguf", original, model="llama"))
    for text in TEXTS:
        assert ours.encode(text) == original.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.token_bytes(original.get_vocab()["<0x0A>"]) == b"\n"
    assert ours.begin_ids() == (1,)


def test_control_tokens_are_special_and_user_defined_ones_are_text(small: Path) -> None:
    types = GGUFFile(small).metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, list)
    ours = rebuilt(small, token_type=[4 if i == 1 else kind for i, kind in enumerate(types)])
    assert set(ours.special_tokens) == {"<|endoftext|>", "<|im_end|>"}
    assert ours.encode("a<|im_start|>")[-1] == 1
    assert ours.token_bytes(1) == b"<|im_start|>"
    assert ours.encode_pieces([TextPiece("<|im_end|>", special=True)]) == [2]
    assert ours.token_bytes(2) == b""


def test_ends_are_what_the_file_and_the_template_name(small: Path) -> None:
    assert rebuilt(small, eos_token_id=0).eos_ids == {0, 2}  # the template ends turns with <|im_end|>
    assert rebuilt(small, eos_token_id=None, eot_token_id=1).eos_ids == {1, 2}


def test_bos_is_added_where_the_file_says_so_or_the_family_does(small: Path) -> None:
    assert rebuilt(small).begin_ids() == ()
    assert rebuilt(small, add_bos_token=True).begin_ids() == (1,)
    assert rebuilt(small, pre="llama-bpe").begin_ids() == (1,)
    assert rebuilt(small, pre="llama-bpe", add_bos_token=False).begin_ids() == ()


@pytest.mark.parametrize("changes", [{"model": "bert"}, {"model": None}, {"pre": "never-heard-of"}])
def test_an_unknown_kind_is_refused(changes: dict[str, Any], small: Path) -> None:
    with pytest.raises(UnsupportedFeature):
        rebuilt(small, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": []},
        {"tokens": [1, 2]},
        {"token_type": None},
        {"token_type": [1]},
        {"merges": None},
        {"merges": ["nothing known"]},
        {"eos_token_id": 10**6},
        {"bos_token_id": "x"},
        {"model": "llama"},
    ],
)
def test_metadata_that_contradict_themselves_name_the_file(changes: dict[str, Any], small: Path) -> None:
    with pytest.raises(CorruptModel, match=r"t\.gguf"):
        rebuilt(small, **changes)
