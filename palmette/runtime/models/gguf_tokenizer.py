"""The tokenizer that a GGUF file carries in its metadata (`tokenizer.ggml.*`).

Two kinds: "gpt2", byte-level BPE whose way of splitting text into words has a name (`tokenizer.ggml.pre`), and "llama",
SentencePiece BPE, whose merges follow from the scores. Token types: 1 normal, 2 unknown, 3 control, 4 user-defined,
5 unused, 6 byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeGuard

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from palmette.errors import CorruptModel, UnsupportedFeature
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.fast_tokenizer import FastTokenizer, Vocabulary
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.tokenizer import SpecialToken

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# name -> expressions that split one after the other
_SPLITS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "gpt-2": (_GPT2,),
        "smollm": (r"\p{N}", _GPT2),
        "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        "llama-bpe": (_LLAMA3,),
        "llama3": (_LLAMA3,),
        "llama-v3": (_LLAMA3,),
        "qwen2": (_QWEN2,),
        "tekken": (_TEKKEN,),
    }
)
_WHOLE_WORDS_FIRST: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
_ADDS_BOS: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})  # where the file does not say
# A chat model ends its turn with one of these, whatever the file calls end-of-sequence.
_ENDS_OF_TURN: Final = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


def gguf_tokenizer(file: GGUFFile) -> FastTokenizer:
    """Build the tokenizer.

    Raises:
        CorruptModel: the metadata contradict themselves.
        UnsupportedFeature: a kind of tokenizer or a way of splitting words that is not known.
    """
    path, metadata = str(file.path), file.metadata
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not _is_strings(tokens) or not tokens:
        raise CorruptModel(path, "there is no tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CorruptModel(path, f"tokenizer.ggml.token_type does not tell of {len(tokens)} tokens")

    pre = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2":
        backend = _byte_level(file, tokens, str(pre))
    elif kind == "llama":
        backend = _sentencepiece(file, tokens)
    else:
        raise UnsupportedFeature(f"tokenizer {kind!r}", "gpt2 and llama can be read from GGUF")

    others = [(i, k) for i, k in enumerate(types) if k != _NORMAL]
    special = {tokens[i]: SpecialToken(i) for i, k in others if k in (_UNKNOWN, _CONTROL)}
    user_defined = [i for i, k in others if k == _USER_DEFINED]
    used: list[str | None] = [*tokens]
    for i, k in others:
        if k == _UNUSED:
            used[i] = None
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(tokens[i], special=False, normalized=False) for i in user_defined])

    template = metadata.get("tokenizer.chat_template")
    template = template if isinstance(template, str) else None
    bos_id, eos_id = (_token_id(file, key, len(tokens)) for key in ("bos", "eos"))
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _ADDS_BOS)
    return FastTokenizer(
        backend,
        Vocabulary(
            tokens=used,
            byte_level=kind == "gpt2",
            literal=frozenset(user_defined),
            special=special,
        ),
        eos_ids=_eos_ids(file, special, template, len(tokens)),
        bos_id=bos_id,
        adds_bos=bool(adds_bos),
        chat_template=ChatTemplate(
            template,
            bos_token="" if bos_id is None else tokens[bos_id],
            eos_token="" if eos_id is None else tokens[eos_id],
        ),
    )


def _byte_level(file: GGUFFile, tokens: list[str], pre: str) -> Tokenizer:
    if pre not in _SPLITS:
        raise UnsupportedFeature(f"tokenizer.ggml.pre = {pre!r}", f"known are {', '.join(_SPLITS)}")
    lines = file.metadata.get("tokenizer.ggml.merges")
    if not _is_strings(lines):
        raise CorruptModel(str(file.path), "there is no tokenizer.ggml.merges")
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    backend = _bpe(file, tokens, merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in _SPLITS[pre]]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    return backend


def _sentencepiece(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece joins the two neighbours whose union scores best: a merge list sorted by that score."""
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CorruptModel(str(file.path), f"tokenizer.ggml.scores does not tell of {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    ranked: list[tuple[float, int, str, str]] = []
    for i, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-float(scores[i]), i, left, right))
    ranked.sort(key=lambda merge: merge[:2])
    backend = _bpe(file, tokens, [(left, right) for _, _, left, right in ranked], byte_fallback=True)
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


def _bpe(
    file: GGUFFile,
    tokens: list[str],
    merges: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        return Tokenizer(
            models.BPE(vocab, merges, ignore_merges=ignore_merges, byte_fallback=byte_fallback, fuse_unk=byte_fallback)
        )
    except Exception as error:  # the library raises nothing more special
        raise CorruptModel(str(file.path), f"the vocabulary and its merges do not fit together: {error}") from error


def _eos_ids(
    file: GGUFFile, special: Mapping[str, SpecialToken], template: str | None, num_tokens: int
) -> frozenset[int]:
    named = (_token_id(file, key, num_tokens) for key in ("eos", "eot", "eom"))
    of_turn = (special[t].token_id for t in _ENDS_OF_TURN if t in special and template is not None and t in template)
    return frozenset(i for i in (*named, *of_turn) if i is not None)


def _token_id(file: GGUFFile, key: str, num_tokens: int) -> int | None:
    value = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < num_tokens:
        raise CorruptModel(str(file.path), f"tokenizer.ggml.{key}_token_id is {value!r} of {num_tokens} tokens")
    return value


def _is_strings(value: object) -> TypeGuard[list[str]]:
    """A GGUF array has one type for all of its elements."""
    return isinstance(value, list) and (not value or isinstance(value[0], str))
