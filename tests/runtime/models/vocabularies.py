"""Small vocabularies, trained on a few lines, as `tokenizers` objects and as GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
    "def main(argv: list[str]) -> int:\n    return len(argv)  # why not?\n\n\n",
    "Größe, naïve, 日本語, Привет мир, 😀 emoji 👩‍👩‍👧\r\n\ttabs\u00a0too",
] * 5
TEXTS = [
    "",
    " ",
    "Hello world",
    "  leading and   inner    spaces  ",
    "it's DON'T we'll I'LL they're",
    "1 23 456  7890 3.14159 1,000,000",
    "def f(x):\n\treturn {'a': [1, 2]}  # comment\n\n\n\n",
    "😀👩‍👩‍👧🇩🇪 e\u0301 ﬁ ß",
    "日本語のテキスト。Привет! مرحبا",
    "a\u00a0b\u2003c\r\n\r\n d\x00e",
    "<|im_start|>user\nnot special<|im_end|>",
    "x" * 300 + " " * 40 + "\n" * 9,
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def word_splits() -> dict[str, pre_tokenizers.PreTokenizer]:
    """How the models behind these names of `tokenizer.ggml.pre` split words, as their own tokenizer.json say it."""
    byte_level = pre_tokenizers.ByteLevel
    qwen = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
    return {
        "gpt-2": byte_level(add_prefix_space=False, use_regex=True),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False, use_regex=True)]
        ),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
        ),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(qwen), "isolated"), byte_level(add_prefix_space=False, use_regex=False)]
        ),
    }


def byte_level(pre: str = "gpt-2", *, special: bool = True) -> Tokenizer:
    """Byte-level BPE of 500 tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = word_splits()[pre]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL if special else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(*, dummy_space: bool) -> Tokenizer:
    """BPE with byte fallback over "▁" for spaces, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if dummy_space else spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in CORPUS[:1]], trainer)
    return without_special_bytes(tokenizer)


def without_special_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same, with only <unk>, <s> and </s> as special tokens; the trainer knows no other way to add bytes."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def write_vocabulary(
    path: Path, tokenizer: Tokenizer, *, model: str = "gpt2", pre: str | None = None, template: str | None = None
) -> Path:
    """A GGUF file with nothing but this tokenizer."""
    spec = json.loads(tokenizer.to_str())
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    special = {t["content"] for t in spec["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([text for text, _ in ids])
    types = {text: 3 if text in special else 6 if text.startswith("<0x") else 1 for text, _ in ids}
    writer.add_token_types([2 if text == "<unk>" else types[text] for text, _ in ids])
    if model == "gpt2":
        writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    else:
        ranks = {"".join(pair): i for i, pair in reversed(list(enumerate(spec["model"]["merges"])))}
        writer.add_token_scores([-float(ranks.get(text, 0)) for text, _ in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
