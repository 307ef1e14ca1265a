"""A model's tokenizer without its weights is the one that comes with them, and costs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from palmette.errors import CorruptModel, ModelNotFound
from palmette.runtime.models.load import load_model
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.models.tokenizer_of import tokenizer_of
from palmette.runtime.tokenizer import Tokenizer
from palmette.types import Message, TextPiece
from tests.runtime.models.checkpoints import configs, random_model, write_gguf
from tests.runtime.models.vocabularies import TEXTS, byte_level, write_vocabulary


def assert_same(ours: Tokenizer, theirs: Tokenizer) -> None:
    assert ours.vocab_size == theirs.vocab_size
    assert ours.special_tokens == theirs.special_tokens
    assert (ours.eos_ids, ours.bos_id, ours.begin_ids()) == (theirs.eos_ids, theirs.bos_id, theirs.begin_ids())
    assert [ours.token_bytes(i) for i in range(ours.vocab_size)] == [
        theirs.token_bytes(i) for i in range(theirs.vocab_size)
    ]
    for text in (*TEXTS, "<|im_start|>user\n<|eos|>"):
        for special in (False, True):
            pieces = [TextPiece(text, special=special)]
            assert ours.encode_pieces(pieces) == theirs.encode_pieces(pieces)
    assert ours.chat_template.source == theirs.chat_template.source
    if ours.chat_template.exists:
        messages = [Message("user", "Hello <|im_end|>")]
        assert ours.chat_template.role_pieces(messages, "user") == theirs.chat_template.role_pieces(messages, "user")


def test_tiny_has_the_tokenizer_and_the_name_of_the_tiny_model() -> None:
    tokenizer, name = tokenizer_of("tiny")
    assert_same(tokenizer, tiny_model().tokenizer)
    assert name == tiny_model().name


def test_a_directory_has_the_tokenizer_that_is_loaded_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "a-llama"
    random_model(configs()["llama-tied"]).save_pretrained(directory)
    byte_level("qwen2").save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded = load_model(directory)
    for path in (directory, str(directory)):
        tokenizer, name = tokenizer_of(path)
        assert_same(tokenizer, loaded.tokenizer)
        assert name == loaded.name == "a-llama"


def test_a_gguf_file_needs_no_weights(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "words.gguf", byte_level("smollm"), pre="smollm", template="<|im_end|>")
    tokenizer, name = tokenizer_of(str(path))
    assert name == "words.gguf"
    assert tokenizer.decode(tokenizer.encode("Hello world")) == "Hello world"
    assert tokenizer.chat_template.source == "<|im_end|>"


@pytest.mark.model
def test_the_embedded_model_has_the_tokenizer_that_is_loaded_with_it() -> None:
    tokenizer, name = tokenizer_of("smollm2")
    loaded = load_model("smollm2")
    assert_same(tokenizer, loaded.tokenizer)
    assert name == loaded.name


def test_what_is_no_model_is_refused_as_load_model_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="smollm2"):
        tokenizer_of("no-such-model")
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        tokenizer_of(tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(CorruptModel, match=r"broken\.gguf"):
        tokenizer_of(tmp_path / "broken.gguf")
    write_gguf(random_model(configs()["llama-tied"]), tmp_path / "mute.gguf", "llama")
    with pytest.raises(CorruptModel, match=r"tokenizer\.ggml\.tokens"):
        tokenizer_of(tmp_path / "mute.gguf")


def test_no_torch_and_no_transformers_is_imported(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    gguf = write_vocabulary(tmp_path / "words.gguf", byte_level("smollm"), pre="smollm")
    code = (
        "import sys\n"
        "from palmette.runtime.models.tokenizer_of import tokenizer_of\n"
        f"print([tokenizer_of(name)[0].decode([72]) for name in ('tiny', {str(gguf)!r}, {str(tmp_path)!r})])\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    shown, imported = done.stdout.splitlines()
    assert shown.startswith("['H', ")
    assert imported == "[]"
