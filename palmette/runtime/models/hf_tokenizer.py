"""The tokenizer of a transformers checkpoint directory: tokenizer.json and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from palmette.errors import CorruptModel, ModelNotFound, UnsupportedFeature
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.fast_tokenizer import FastTokenizer, Vocabulary
from palmette.runtime.models.safetensors import read_json
from palmette.runtime.tokenizer import SpecialToken


def directory_tokenizer(directory: Path) -> FastTokenizer:
    """Build the tokenizer of a checkpoint directory.

    Raises:
        ModelNotFound: no tokenizer.json.
        CorruptModel: a file is broken.
        UnsupportedFeature: a vocabulary whose tokens are not bytes (WordPiece).
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelNotFound(str(directory), "the directory has no tokenizer.json")
    spec = read_json(path)
    try:
        original = tokenizers.Tokenizer.from_str(json.dumps(spec))
        _drop_dummy_space(spec)
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing more special
        raise CorruptModel(str(path), f"the tokenizers library refuses it: {error}") from error

    ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for text, token_id in ids.items():
        tokens[token_id] = text
    added = [t for t in spec.get("added_tokens") or [] if isinstance(t, dict)]
    special = {
        t["content"]: SpecialToken(t["id"], bool(t.get("lstrip")), bool(t.get("rstrip")))
        for t in added
        if t.get("special")
    }
    vocabulary = Vocabulary(
        tokens=tokens,
        byte_level=_is_byte_level(spec, path),
        literal=frozenset(t["id"] for t in added),
        special=special,
    )
    settings = _optional_json(directory / "tokenizer_config.json")
    bos, eos = (_token_text(settings.get(key)) for key in ("bos_token", "eos_token"))
    bos_id = ids.get(bos) if bos else None
    first = original.encode("a").ids[:1]  # with whatever the file's post-processor adds
    return FastTokenizer(
        backend,
        vocabulary,
        eos_ids=_eos_ids(directory, ids.get(eos) if eos else None),
        bos_id=bos_id,
        adds_bos=bos_id is not None and first == [bos_id],
        chat_template=ChatTemplate(_template(directory, settings), bos_token=bos or "", eos_token=eos or ""),
    )


def _drop_dummy_space(spec: dict[str, Any]) -> None:
    """Remove, in place, what would put a space before every text."""
    for key, members in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = spec.get(key)
        if not isinstance(step, dict):
            continue
        steps = step[members] if step.get("type") == "Sequence" and isinstance(step.get(members), list) else [step]
        for part in steps:
            if part.get("type") == "Metaspace":
                part.pop("add_prefix_space", None)
                part["prepend_scheme"] = "never"
            elif part.get("type") == "ByteLevel":
                part["add_prefix_space"] = False
        kept = [part for part in steps if part.get("type") != "Prepend"]
        if len(kept) != len(steps):
            spec[key] = {"type": "Sequence", members: kept}


def _is_byte_level(spec: Mapping[str, Any], path: Path) -> bool:
    model = spec.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if '"ByteLevel"' in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")]):
        return True
    if kind in ("BPE", "Unigram"):
        return False
    raise UnsupportedFeature(f"the tokenizer {path.name} of type {kind}", "its tokens do not spell bytes")


def _template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _eos_ids(directory: Path, tokenizer_eos: int | None) -> frozenset[int]:
    """Whatever any of the files calls the end of a sequence."""
    found = set() if tokenizer_eos is None else {tokenizer_eos}
    for name in ("config.json", "generation_config.json"):
        value = _optional_json(directory / name).get("eos_token_id")
        found |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return frozenset(found)


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
