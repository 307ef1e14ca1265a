"""The tokenizer of a checkpoint directory gives the ids that transformers gives, and takes text apart without loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from palmette.errors import CorruptModel, ModelNotFound, UnsupportedFeature
from palmette.runtime.models.hf_tokenizer import directory_tokenizer
from palmette.types import Message, TextPiece
from tests.runtime.models.vocabularies import TEXTS, byte_level, sentencepiece


def save(directory: Path, tokenizer: Tokenizer, **settings: Any) -> Any:
    """As transformers saves it; returns transformers' own."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    fast.save_pretrained(directory)
    return fast


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_ids_are_those_of_transformers(pre: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, byte_level(pre))
    ours = directory_tokenizer(tmp_path)
    assert ours.vocab_size == len(theirs)
    for text in TEXTS:
        if "<|" not in text:
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == text


def test_sentencepiece_ids_are_those_of_transformers_less_the_dummy_space(tmp_path: Path) -> None:
    save(tmp_path, sentencepiece(dummy_space=True))
    ours, theirs = directory_tokenizer(tmp_path), sentencepiece(dummy_space=False)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_metaspace_and_byte_level_put_no_space_before_a_text(tmp_path: Path) -> None:
    for pre in (pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=True)):
        tokenizer = byte_level() if isinstance(pre, pre_tokenizers.ByteLevel) else sentencepiece(dummy_space=False)
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre
        save(tmp_path, tokenizer)
        ours = directory_tokenizer(tmp_path)
        for text in ("word", "two words", " leading"):
            assert ours.decode(ours.encode(text)) == text


def test_token_bytes_put_together_are_the_text(tmp_path: Path) -> None:
    save(tmp_path, byte_level())
    ours = directory_tokenizer(tmp_path)
    for text in TEXTS:
        assert b"".join(ours.token_bytes(i) for i in ours.encode(text)) == text.encode()
    assert {ours.token_bytes(i) for i in range(ours.vocab_size)} >= {bytes([b]) for b in range(256)}


def test_special_tokens_are_parsed_in_template_text_only(tmp_path: Path) -> None:
    theirs = save(tmp_path, byte_level())
    ours = directory_tokenizer(tmp_path)
    text = "<|im_start|>user\nHi<|im_end|>\n"
    assert ours.encode_pieces([TextPiece(text, special=True)]) == theirs(text, add_special_tokens=False).input_ids
    plain = ours.encode(text)
    assert not any(ours.is_special(i) for i in plain)
    assert ours.decode(plain) == text


def test_added_tokens_that_are_not_special_stand_for_their_text(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    save(tmp_path, tokenizer)
    ours = directory_tokenizer(tmp_path)
    ids = ours.encode("<think>é")
    assert ours.token_bytes(ids[0]) == b"<think>"
    assert ours.decode(ids) == "<think>é"


def test_ends_and_beginnings_come_from_all_files(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    save(tmp_path, tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    ours = directory_tokenizer(tmp_path)
    assert ours.eos_ids == {2, 7, 8, 9}
    assert ours.begin_ids() == (0,)
    assert ours.encode("a") == byte_level().encode("a", add_special_tokens=False).ids


def test_a_bos_that_the_tokenizer_does_not_add_is_not_added(tmp_path: Path) -> None:
    save(tmp_path, byte_level(), bos_token="<|endoftext|>")
    ours = directory_tokenizer(tmp_path)
    assert ours.bos_id == 0
    assert ours.begin_ids() == ()


def test_the_chat_template_is_found_wherever_it_lies(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    save(tmp_path, byte_level(), bos_token="<|endoftext|>")
    assert not directory_tokenizer(tmp_path).chat_template.exists
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    for value in (template, named):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": value}))
        assert directory_tokenizer(tmp_path).chat_template.render([Message("user", "hi")]) == "<|endoftext|>hi"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert directory_tokenizer(tmp_path).chat_template.source == "file"


def test_a_vocabulary_that_spells_no_bytes_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedFeature, match="WordPiece"):
        directory_tokenizer(tmp_path)


def test_a_missing_tokenizer_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        directory_tokenizer(tmp_path)
    for text in ("{", "{}", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(CorruptModel):
            directory_tokenizer(tmp_path)
